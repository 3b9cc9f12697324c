CREATE TABLE IF NOT EXISTS memory (
	user  TEXT PRIMARY KEY,
	value TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS replies (
	user    TEXT NOT NULL,
	id      TEXT NOT NULL,             -- message-id
	body    BLOB NOT NULL,             -- SHA-256 of the request's body
	reply   TEXT NOT NULL DEFAULT '',
	created TEXT NOT NULL,
	PRIMARY KEY (user, id)
) STRICT, WITHOUT ROWID;
