package proxy

import (
	"context"
	"log/slog"
	"time"
)

// accessLine is one request in the access log. Paths and queries are left out: they hold secrets often enough.
type accessLine struct {
	c                            *conn
	proto, method, authority, id string
	status                       int
	reason                       Reason
	received, sent               int64
	duration                     time.Duration
}

func (p *Proxy) access(l accessLine) {
	p.log.LogAttrs(context.Background(), slog.LevelDebug, "request",
		slog.Any("client", l.c.client), slog.String("proto", l.proto), slog.String("method", l.method), slog.String("authority", l.authority),
		slog.String("request_id", l.id), slog.Int("status", l.status), slog.String("reason", string(l.reason)),
		slog.Int64("received", l.received), slog.Int64("sent", l.sent), slog.Duration("duration", l.duration))
}
