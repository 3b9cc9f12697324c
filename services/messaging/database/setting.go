package database

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

const form = "postgres://user@host:port/database?sslmode=…"

// The options that a URL may have. Others would be sent to the server, which
// refuses every connection with one that it does not know.
var (
	options  = []string{"sslmode", "sslrootcert", "sslcert", "sslkey"}
	sslmodes = []string{"disable", "require", "verify-ca", "verify-full"}
)

// Check refuses settings that cannot work. It opens no connection, and its
// errors hold neither the URL nor the password.
func Check(database, passwordFile string) error {
	if isFile(database) {
		if passwordFile != "" {
			return errors.New("WARREN_DATABASE_PASSWORD_FILE: only for PostgreSQL, and WARREN_DATABASE is not " + form)
		}
		return nil
	}
	if _, err := parse(database); err != nil {
		return fmt.Errorf("WARREN_DATABASE: %w", err)
	}
	if passwordFile != "" {
		_, err := readPassword(passwordFile)
		return err
	}
	return nil
}

func isFile(database string) bool { return !strings.Contains(database, "://") }

// parse reads a URL. The parser's own errors quote the whole text, and with it
// a password that should not be there, so none of them is passed on.
func parse(database string) (*url.URL, error) {
	u, err := url.Parse(database)
	switch {
	case err != nil:
		return nil, errors.New("not of the form " + form)
	case u.Scheme != "postgres" && u.Scheme != "postgresql":
		return nil, fmt.Errorf("scheme %q: want a SQLite file or %s", u.Scheme, form)
	case u.User.Username() == "":
		return nil, errors.New("names no user: want " + form)
	case u.Hostname() == "":
		return nil, errors.New("names no host: want " + form)
	case len(u.Path) < 2:
		return nil, errors.New("names no database: want " + form)
	}
	if _, there := u.User.Password(); there {
		return nil, errors.New("holds a password: put it into the file that WARREN_DATABASE_PASSWORD_FILE names")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("port %s: want 1 to 65535", port)
		}
	}
	given, err := url.ParseQuery(u.RawQuery)
	if err != nil || u.Fragment != "" {
		return nil, errors.New("not of the form " + form)
	}
	for name, values := range given {
		if !slices.Contains(options, name) {
			return nil, fmt.Errorf("unknown option %q; there are %v", name, options)
		}
		if len(values) > 1 {
			return nil, fmt.Errorf("%s is given %d times", name, len(values))
		}
	}
	if mode := given.Get("sslmode"); !slices.Contains(sslmodes, mode) {
		return nil, fmt.Errorf("sslmode=%s: want one of %v; any other falls back to plain text where TLS fails", mode, sslmodes)
	}
	return u, nil
}

func readPassword(file string) (string, error) {
	b, err := os.ReadFile(file)
	password := strings.TrimRight(string(b), "\r\n")
	if err == nil && password == "" {
		err = fmt.Errorf("%s is empty", file)
	}
	if err != nil {
		return "", fmt.Errorf("WARREN_DATABASE_PASSWORD_FILE: %w", err)
	}
	return password, nil
}
