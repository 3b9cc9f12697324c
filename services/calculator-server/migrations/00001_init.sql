-- +goose Up
-- For SQLite and PostgreSQL alike; "user" is a reserved word of the latter. IF
-- NOT EXISTS: SQLite files older than the migrations have these tables.

CREATE TABLE IF NOT EXISTS memory (
    "user" TEXT NOT NULL PRIMARY KEY,
    value  TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS replies (
    "user"  TEXT  NOT NULL,
    id      TEXT  NOT NULL, -- message-id
    body    BYTEA NOT NULL, -- SHA-256 of the request's body; to SQLite any type name that it does not know keeps bytes as they are
    reply   TEXT  NOT NULL DEFAULT '',
    created TEXT  NOT NULL,
    PRIMARY KEY ("user", id)
);
