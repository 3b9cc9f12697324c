-- +goose Up
-- For SQLite and PostgreSQL alike. Times are Unix milliseconds, 0 for none. IF
-- NOT EXISTS: SQLite files older than the migrations have these tables.

CREATE TABLE IF NOT EXISTS dead_letters (
    id            INTEGER PRIMARY KEY, -- SQLite counts by itself; for PostgreSQL see 00002

    message_id    TEXT    NOT NULL,
    replay        BIGINT  NOT NULL, -- generation that died; 0 is the original
    attempt       BIGINT  NOT NULL,
    queue         TEXT    NOT NULL,
    reason        TEXT    NOT NULL,
    count         BIGINT  NOT NULL,
    salt          TEXT    NOT NULL, -- fingerprint of what was published; random in the lesson without a unique key; empty in rows older than the fingerprint

    why           TEXT    NOT NULL,
    code          TEXT    NOT NULL,
    suspicious    TEXT    NOT NULL,
    user_id       TEXT    NOT NULL,
    original_user TEXT    NOT NULL,
    died_at       BIGINT  NOT NULL,
    deaths        TEXT    NOT NULL, -- JSON, as are the next two
    properties    TEXT    NOT NULL,
    headers       TEXT    NOT NULL,
    body          BYTEA   NOT NULL, -- to SQLite any type name that it does not know keeps bytes as they are
    body_size     BIGINT  NOT NULL,

    status        TEXT    NOT NULL,
    generation    BIGINT  NOT NULL, -- that it was replayed under; 0: never
    outcome       TEXT    NOT NULL,
    token         TEXT    NOT NULL,
    lease         BIGINT  NOT NULL,
    seen          BIGINT  NOT NULL,
    first_seen    BIGINT  NOT NULL,
    last_seen     BIGINT  NOT NULL,

    UNIQUE (message_id, replay, attempt, queue, reason, count, salt)
);

-- Two deaths of one message are never replayed at the same time.
CREATE UNIQUE INDEX IF NOT EXISTS dead_letters_one_replay ON dead_letters (message_id) WHERE status = 'replaying';
CREATE INDEX IF NOT EXISTS dead_letters_status ON dead_letters (status, lease);

CREATE TABLE IF NOT EXISTS trail (
    id          INTEGER PRIMARY KEY,
    at          BIGINT  NOT NULL,
    actor       TEXT    NOT NULL,
    action      TEXT    NOT NULL,
    dead_letter BIGINT  NOT NULL REFERENCES dead_letters (id),
    message_id  TEXT    NOT NULL,
    before      TEXT    NOT NULL,
    after       TEXT    NOT NULL,
    detail      TEXT    NOT NULL
);

CREATE INDEX IF NOT EXISTS trail_dead_letter ON trail (dead_letter);
