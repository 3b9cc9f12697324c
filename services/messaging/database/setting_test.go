package database

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	password, empty := filepath.Join(dir, "password"), filepath.Join(dir, "empty")
	for file, text := range map[string]string{password: "s3cret\n", empty: "\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const server = "postgres://warren@db:5432/warren?sslmode=disable"
	for what, tc := range map[string]struct {
		database, passwordFile string
		want                   string // part of the error; empty: it is right
	}{
		"a file":                      {"some/file.db", "", ""},
		"a server":                    {server, password, ""},
		"its other name":              {"postgresql://warren@db/warren?sslmode=verify-full&sslrootcert=/ca.pem", "", ""},
		"password of a file":          {"file.db", password, "WARREN_DATABASE_PASSWORD_FILE: only for PostgreSQL"},
		"no password file":            {server, filepath.Join(dir, "none"), "WARREN_DATABASE_PASSWORD_FILE: open "},
		"empty password file":         {server, empty, "empty is empty"},
		"another server":              {"mysql://s3cret@db/warren", "", `WARREN_DATABASE: scheme "mysql": want a SQLite file or postgres://user@`},
		"not a URL":                   {"postgres://warren:s3cret@db:x/warren", "", "WARREN_DATABASE: not of the form postgres://user@"},
		"no user":                     {"postgres://db/warren?sslmode=disable", "", "names no user"},
		"no host":                     {"postgres://warren@:5432/warren?sslmode=disable", "", "names no host"},
		"no database":                 {"postgres://warren@db/?sslmode=disable", "", "names no database"},
		"port":                        {"postgres://warren@db:70000/warren?sslmode=disable", "", "port 70000: want 1 to 65535"},
		"password in the URL":         {"postgres://warren:s3cret@db/warren?sslmode=disable", "", "holds a password"},
		"no sslmode":                  {"postgres://warren@db/warren", "", "sslmode=: want one of"},
		"sslmode that may fall back":  {"postgres://warren@db/warren?sslmode=prefer", "", "sslmode=prefer: want one of [disable require verify-ca verify-full]"},
		"misspelt option":             {"postgres://warren@db/warren?sslmod=require", "", `unknown option "sslmod"; there are [sslmode`},
		"option given twice":          {"postgres://warren@db/warren?sslmode=disable&sslmode=require", "", "sslmode is given 2 times"},
		"a password as an option":     {"postgres://warren@db/warren?password=s3cret", "", `unknown option "password"`},
		"what the parser cannot read": {"postgres://warren@db/warren?sslmode=%zz", "", "not of the form"},
	} {
		err := Check(tc.database, tc.passwordFile)
		if (err != nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", what, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the password prints: %v", what, err)
		}
	}
}
