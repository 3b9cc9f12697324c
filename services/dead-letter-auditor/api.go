package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"warren.example/messaging/event"
)

// actorHeader names the person on whose behalf a POST is made.
const actorHeader = "Warren-Actor"

var actorName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// What the API answers. The CLI reads the same types.
type (
	listAnswer struct {
		DeadLetters []DeadLetter `json:"dead_letters"`
		Next        int64        `json:"next,omitempty"` // the value of after= for the next page; absent on the last
	}
	showAnswer struct {
		DeadLetters []DeadLetter `json:"dead_letters"` // one, or all deaths of a message
		Trail       []Entry      `json:"trail"`
	}
	rowAnswer struct {
		DeadLetter DeadLetter `json:"dead_letter"`
	}
	trailAnswer struct {
		Trail []Entry `json:"trail"`
		Next  int64   `json:"next,omitempty"`
	}
	errorAnswer struct {
		Error string `json:"error"`
	}
	discardBody struct {
		Reason string `json:"reason"`
	}
)

// api is the HTTP side.
type api struct {
	store    Store
	replayer *replayer
	service  context.Context // replays live as long as it
	token    token           // empty: only this machine can reach us
	events   *event.Recorder
	log      *zap.Logger
}

// badRequest is the caller's mistake.
type badRequest struct{ error }

func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/dead-letters", a.answer(http.StatusOK, a.list))
	mux.HandleFunc("GET /api/dead-letters/{id}", a.answer(http.StatusOK, a.show))
	mux.HandleFunc("POST /api/dead-letters/{id}/replay", a.answer(http.StatusAccepted, a.replay))
	mux.HandleFunc("POST /api/dead-letters/{id}/discard", a.answer(http.StatusOK, a.discard))
	mux.HandleFunc("GET /api/trail", a.answer(http.StatusOK, a.trail))
	// A page elsewhere must not be able to press our buttons.
	return a.guard(http.NewCrossOriginProtection().Handler(mux))
}

// guard lets only those in who know the token or, where there is none, who
// call this machine by a name of this machine: a page of another site can
// make its own name point here, and would pass for same-origin.
func (a *api) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if a.token != "" {
			scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			if !strings.EqualFold(scheme, "Bearer") || !a.token.is(given) {
				w.Header().Set("WWW-Authenticate", "Bearer")
				write(w, http.StatusUnauthorized, errorAnswer{"Authorization: want Bearer and the token"})
				return
			}
		} else if host, _, err := net.SplitHostPort(r.Host); err != nil && !loopbackHost(strings.Trim(r.Host, "[]")) || err == nil && !loopbackHost(host) {
			write(w, http.StatusMisdirectedRequest, errorAnswer{"Host: want localhost or a loopback address, because no token is set"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
		next.ServeHTTP(w, r)
	})
}

// answer turns what do returns into a status and JSON.
func (a *api) answer(ok int, do func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := do(r)
		var conflict *Conflict
		var unavailable *Unavailable
		var large *http.MaxBytesError
		switch {
		case err == nil:
			write(w, ok, v)
		case errors.As(err, &large):
			write(w, http.StatusRequestEntityTooLarge, errorAnswer{fmt.Sprintf("body: more than %d bytes", large.Limit)})
		case errors.As(err, new(badRequest)):
			write(w, http.StatusBadRequest, errorAnswer{err.Error()})
		case errors.Is(err, ErrNotFound):
			write(w, http.StatusNotFound, errorAnswer{fmt.Sprintf("%v: %s", ErrNotFound, clean(r.PathValue("id"), 80))})
		case errors.As(err, &conflict):
			write(w, http.StatusConflict, errorAnswer{err.Error()})
		case errors.As(err, &unavailable):
			write(w, http.StatusServiceUnavailable, errorAnswer{err.Error()})
		default: // the database
			if r.Context().Err() == nil {
				a.log.Error("http request failed", zap.String("path", r.URL.Path), zap.Error(err))
			}
			write(w, http.StatusServiceUnavailable, errorAnswer{"not now: the database is in trouble; the service's log says more"})
		}
	}
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the reader may be gone
}

func (a *api) list(r *http.Request) (any, error) {
	q, err := query(r, "status", "reason", "message_id", "limit", "after")
	if err != nil {
		return nil, err
	}
	f := Filter{Status: Status(q.Get("status")), Reason: Reason(q.Get("reason")), MessageID: q.Get("message_id")}
	if f.Status != "" && !slices.Contains(statuses, f.Status) {
		return nil, badRequest{fmt.Errorf("status=%s: want one of %v", clean(q.Get("status"), 40), statuses)}
	}
	if f.Reason != "" && !slices.Contains(reasons, f.Reason) {
		return nil, badRequest{fmt.Errorf("reason=%s: want one of %v", clean(q.Get("reason"), 40), reasons)}
	}
	if f.Limit, f.After, err = page(q); err != nil {
		return nil, err
	}
	rows, err := a.store.List(r.Context(), f)
	if err != nil {
		return nil, err
	}
	answer := listAnswer{DeadLetters: make([]DeadLetter, 0, len(rows))}
	for _, row := range rows {
		row.Deaths, row.Properties, row.Headers, row.Body = nil, nil, nil, nil
		answer.DeadLetters = append(answer.DeadLetters, row)
	}
	if len(rows) == f.Limit {
		answer.Next = rows[len(rows)-1].ID
	}
	return answer, nil
}

func (a *api) show(r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	rows, err := a.store.Find(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	answer := showAnswer{DeadLetters: rows, Trail: []Entry{}}
	for _, row := range rows {
		entries, err := a.store.Trail(r.Context(), TrailFilter{Row: row.ID, Limit: maxLimit})
		if err != nil {
			return nil, err
		}
		answer.Trail = append(answer.Trail, entries...)
	}
	slices.SortFunc(answer.Trail, func(x, y Entry) int { return int(y.ID - x.ID) })
	return answer, nil
}

func (a *api) replay(r *http.Request) (any, error) {
	actor, id, err := a.command(r, &struct{}{})
	if err != nil {
		return nil, err
	}
	row, err := a.replayer.replay(r.Context(), a.service, id, actor)
	return rowAnswer{row}, err
}

func (a *api) discard(r *http.Request) (any, error) {
	var body discardBody
	actor, id, err := a.command(r, &body)
	if err != nil {
		return nil, err
	}
	reason := strings.TrimSpace(clean(body.Reason, 500))
	if reason == "" {
		return nil, badRequest{errors.New("reason: missing; say why nobody needs it any more")}
	}
	row, err := a.store.Discard(r.Context(), id, actor, reason)
	if err != nil {
		return nil, err
	}
	a.events.Record(event.Line{Event: event.Discarded, Request: row.MessageID, Replay: row.Replay, Reason: "by " + actor + ": " + reason})
	a.log.Info("dead letter discarded", zap.String("request", row.MessageID), zap.Int64("row", row.ID), zap.String("actor", actor))
	return rowAnswer{row}, nil
}

func (a *api) trail(r *http.Request) (any, error) {
	q, err := query(r, "limit", "after")
	if err != nil {
		return nil, err
	}
	var f TrailFilter
	if f.Limit, f.After, err = page(q); err != nil {
		return nil, err
	}
	entries, err := a.store.Trail(r.Context(), f)
	answer := trailAnswer{Trail: append([]Entry{}, entries...)}
	if len(entries) == f.Limit {
		answer.Next = entries[len(entries)-1].ID
	}
	return answer, err
}

// command reads what all POSTs have: who asks, for which row, and a body
// without unknown fields. A message-id will do where it names one row.
func (a *api) command(r *http.Request, body any) (actor string, id int64, err error) {
	if _, err := query(r); err != nil {
		return "", 0, err
	}
	actor = r.Header.Get(actorHeader)
	if !actorName.MatchString(actor) {
		return "", 0, badRequest{fmt.Errorf("%s: %q: want the name of who asks, of letters, digits and . _ @ -, at most 64", actorHeader, clean(actor, 64))}
	}
	if err := decodeBody(r, body); err != nil {
		return "", 0, err
	}
	rows, err := a.store.Find(r.Context(), r.PathValue("id"))
	if err != nil {
		return "", 0, err
	}
	if len(rows) > 1 {
		ids := make([]string, len(rows))
		for i, row := range rows {
			ids[i] = strconv.FormatInt(row.ID, 10)
		}
		return "", 0, badRequest{fmt.Errorf("the message died %d times: name one of %s", len(rows), strings.Join(ids, ", "))}
	}
	return actor, rows[0].ID, nil
}

// decodeBody reads one JSON object, or none where none is needed.
func decodeBody(r *http.Request, into any) error {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Errorf("body: %w", err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return badRequest{fmt.Errorf("body: %s", strings.TrimPrefix(err.Error(), "json: "))}
	}
	if _, err := dec.Token(); err != io.EOF {
		return badRequest{errors.New("body: more than one JSON value")}
	}
	return nil
}

// query refuses keys that are unknown or given twice.
func query(r *http.Request, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest{fmt.Errorf("query: %w", err)}
	}
	for key, values := range q {
		if !slices.Contains(known, key) {
			return nil, badRequest{fmt.Errorf("query: unknown key %q; there are %q", clean(key, 40), known)}
		}
		if len(values) > 1 {
			return nil, badRequest{fmt.Errorf("query: %s is given %d times", key, len(values))}
		}
	}
	return q, nil
}

const (
	defaultLimit = 50
	maxLimit     = 500
)

func page(q url.Values) (limit int, after int64, err error) {
	limit = defaultLimit
	if s := q.Get("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxLimit {
			return 0, 0, badRequest{fmt.Errorf("limit=%s: want 1 to %d", clean(s, 40), maxLimit)}
		}
	}
	if s := q.Get("after"); s != "" {
		if after, err = strconv.ParseInt(s, 10, 64); err != nil || after < 1 {
			return 0, 0, badRequest{fmt.Errorf("after=%s: want the number in \"next\" of the page before", clean(s, 40))}
		}
	}
	return limit, after, nil
}

// apiTimeout bounds one request to the API, at either end.
const apiTimeout = 30 * time.Second
