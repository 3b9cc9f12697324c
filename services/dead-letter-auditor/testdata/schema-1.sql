-- Times are Unix milliseconds, 0 for none. Plain SQL; PostgreSQL needs only
-- BIGSERIAL and BYTEA in place of the two SQLite spellings.

CREATE TABLE dead_letters (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,

    message_id    TEXT    NOT NULL,
    replay        INTEGER NOT NULL, -- generation that died; 0 is the original
    attempt       INTEGER NOT NULL,
    queue         TEXT    NOT NULL,
    reason        TEXT    NOT NULL,
    count         INTEGER NOT NULL,
    salt          TEXT    NOT NULL, -- empty; random only in the lesson without a unique key

    why           TEXT    NOT NULL,
    code          TEXT    NOT NULL,
    suspicious    TEXT    NOT NULL,
    user_id       TEXT    NOT NULL,
    original_user TEXT    NOT NULL,
    died_at       BIGINT  NOT NULL,
    deaths        TEXT    NOT NULL, -- JSON, as are the next two
    properties    TEXT    NOT NULL,
    headers       TEXT    NOT NULL,
    body          BLOB    NOT NULL,
    body_size     BIGINT  NOT NULL,

    status        TEXT    NOT NULL,
    generation    INTEGER NOT NULL, -- that it was replayed under; 0: never
    outcome       TEXT    NOT NULL,
    token         TEXT    NOT NULL,
    lease         BIGINT  NOT NULL,
    seen          INTEGER NOT NULL,
    first_seen    BIGINT  NOT NULL,
    last_seen     BIGINT  NOT NULL,

    UNIQUE (message_id, replay, attempt, queue, reason, count, salt)
);

-- Two deaths of one message are never replayed at the same time.
CREATE UNIQUE INDEX dead_letters_one_replay ON dead_letters (message_id) WHERE status = 'replaying';
CREATE INDEX dead_letters_status ON dead_letters (status, lease);

CREATE TABLE trail (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          BIGINT  NOT NULL,
    actor       TEXT    NOT NULL,
    action      TEXT    NOT NULL,
    dead_letter BIGINT  NOT NULL REFERENCES dead_letters (id),
    message_id  TEXT    NOT NULL,
    before      TEXT    NOT NULL,
    after       TEXT    NOT NULL,
    detail      TEXT    NOT NULL
);

CREATE INDEX trail_dead_letter ON trail (dead_letter);
