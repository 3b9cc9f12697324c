// Package process is what a running service has in common on every substrate:
// its user at the broker, its HTTP ports, and what it writes.
package process

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
)

// User is who a service is at the broker.
func User(kind substrate.Kind) (string, error) {
	switch kind {
	case substrate.CalculatorServer:
		return contract.UserServer, nil
	case substrate.Client:
		return contract.UserClient, nil
	case substrate.DeadLetterAuditor:
		return contract.UserAuditor, nil
	}
	return "", fmt.Errorf("no service of kind %q", kind)
}

// Settings are those of a service that the substrate's own and the scenario's
// are added to.
func Settings(run, instance string) map[string]string {
	return map[string]string{
		"EVENTS":    "stdout",
		"RUN":       run,
		"INSTANCE":  instance,
		"FAULTS":    "true",
		"LOG_LEVEL": "info",
	}
}

// Ask sends a request to one of a service's ports, host:port, and returns the
// body of a 2xx answer. Token, if there is one, is the bearer token.
func Ask(ctx context.Context, client *http.Client, who, method, addr, path, token string, body any) (answer []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s %s of %s: %w", method, path, who, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, payload)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Warren-Actor", "lab") // the auditor wants to know who asks
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", res.Status, bytes.TrimSpace(answer))
	}
	return answer, err
}

// WaitReady polls /readyz, through restarts. Ended is closed when the process
// has ended for good; last is its last log line.
func WaitReady(ctx context.Context, p substrate.Process, every time.Duration, ended <-chan struct{}, last func() string) error {
	for {
		_, err := p.Admin(ctx, http.MethodGet, "/readyz", nil)
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			exit, why := p.Wait(ctx)
			if why != nil {
				return why
			}
			return fmt.Errorf("%s ended (status %d) before it was ready; last log line: %s", p.Name(), exit.Code, last())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be ready: %w; last answer: %v; last log line: %s", p.Name(), ctx.Err(), err, last())
		case <-time.After(every):
		}
	}
}
