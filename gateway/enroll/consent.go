package enroll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"dstack.host/ratls"
)

// judge holds an app to the policy, then asks whoever else is to be asked. A refusal is final as long as nothing changes; any other
// error means that nothing is known now.
func (c *Config) judge(ctx context.Context, quote *ratls.Quote, info ratls.AppInfo) error {
	if c.Appraise != nil {
		if err := c.Appraise(quote, info); err != nil {
			return refuse(reasonPolicy, fmt.Errorf("this gateway does not take the app: %w", err))
		}
	}
	if c.Authorize == nil {
		return nil
	}
	err := c.Authorize(ctx, info)
	if errors.Is(err, ErrDenied) {
		return refuse(reasonWebhook, fmt.Errorf("App authorization failed: %w", err))
	}
	if err != nil {
		return fmt.Errorf("App authorization failed: %w", err)
	}
	return nil
}

// ErrDenied is the no of whoever authorizes apps. Any other error of theirs means that they can't be asked.
var ErrDenied = errors.New("denied")

// webhookTimeout is dstack's.
const webhookTimeout = 5 * time.Second

// Webhook authorizes apps by asking a URL: it gets what is known of the app as JSON, and any 2xx is a yes (dstack 0.6
// gateway/src/main_service/auth_client.rs). 3xx is followed. Every other answer denies the registration at hand; only a 4xx is ErrDenied, which
// also ends an instance that is registered: a webhook that is broken must not take all apps down. A nil client is one of its own.
func Webhook(url string, client *http.Client) func(context.Context, ratls.AppInfo) error {
	if client == nil {
		client = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute}}
	}
	return func(ctx context.Context, info ratls.AppInfo) error {
		body, err := json.Marshal(info)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, webhookTimeout)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/json")
		response, err := client.Do(request)
		if err != nil {
			return fmt.Errorf("authorization webhook: %w", err)
		}
		defer func() { _ = response.Body.Close() }()
		switch class := response.StatusCode / 100; class {
		case 2:
			return nil
		case 4:
			return fmt.Errorf("authorization webhook: %w: %s", ErrDenied, response.Status)
		default:
			return fmt.Errorf("authorization webhook: %s", response.Status)
		}
	}
}
