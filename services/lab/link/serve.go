package link

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// Control is a link's API: POST /orders takes an Order, GET /hit tells how many
// have met their frame, GET /readyz answers.
func (k *Link) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /hit", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, k.Hit()) })
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		var o Order
		in := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10))
		in.DisallowUnknownFields()
		err := in.Decode(&o)
		if err == nil {
			err = k.Do(o)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}
