package ratls

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// maxAnswer bounds one answer of a collateral service. Intel's have less than 100 KiB.
const maxAnswer = 4 << 20

// GetterFunc is a function that is a Getter.
type GetterFunc func(ctx context.Context, url string) (http.Header, []byte, error)

// Get implements Getter.
func (f GetterFunc) Get(ctx context.Context, url string) (http.Header, []byte, error) {
	return f(ctx, url)
}

// NewHTTPGetter returns a Getter that asks over HTTP: any status but 200 is an error, redirects are not followed (they would
// leave the hosts that a [Cache] allows), and a body of more than 4 MiB is refused. A nil client, or one without a timeout, gets
// one of 15 seconds.
func NewHTTPGetter(client *http.Client) Getter {
	own := http.Client{}
	if client != nil {
		own = *client
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if own.Timeout <= 0 {
		own.Timeout = 15 * time.Second
	}
	return GetterFunc(func(ctx context.Context, url string) (http.Header, []byte, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, nil, err
		}
		response, err := own.Do(request)
		if err != nil {
			return nil, nil, err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return nil, nil, fmt.Errorf("service answers %s", response.Status)
		}
		body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
		if err != nil {
			return nil, nil, err
		}
		if len(body) > maxAnswer {
			return nil, nil, fmt.Errorf("answer has more than %d bytes", maxAnswer)
		}
		return response.Header, body, nil
	})
}

// intelPCS is the service whose URLs collateral is known by.
const intelPCS = "https://api.trustedservices.intel.com"

// ThroughPCCS asks a caching service at base for everything that belongs to Intel's; "" is Intel's itself.
func ThroughPCCS(getter Getter, base string) Getter {
	if base == "" {
		return getter
	}
	return GetterFunc(func(ctx context.Context, url string) (http.Header, []byte, error) {
		if path, ok := strings.CutPrefix(url, intelPCS+"/"); ok {
			url = strings.TrimSuffix(base, "/") + "/" + path
		}
		return getter.Get(ctx, url)
	})
}
