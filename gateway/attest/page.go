package attest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"

	"dstack.host/gateway/web"
	"dstack.host/ratls"
)

// pagePolicy is the Content-Security-Policy field of the page.
var pagePolicy = sync.OnceValue(func() []string { return []string{web.AttestationPolicy()} })

// page is the document as people see it: the server's own verdict, and the means to reach one's own.
func (a *Attester) page(s subject, d *ratls.Document, text []byte) ([]byte, error) {
	p := web.Attestation{Host: a.authority(s.host), Node: a.config.Node, TEE: string(a.config.Platform.Kind()), SimulatedRoot: a.rootPEM}
	report := a.judge(s, d, text)
	p.Simulated = report.Simulated
	for _, c := range report.Checks {
		p.Checks = append(p.Checks, web.Check{Hop: c.Hop, Name: c.Name, Status: string(c.Status), Detail: c.Detail})
	}
	for _, c := range report.Claims {
		p.Facts = append(p.Facts, web.Claimed(c.Hop, c.Name, c.Value, c.Source))
	}
	for _, e := range d.Apps {
		p.Apps = append(p.Apps, web.App{Instance: e.InstanceID, Compose: e.AppCompose})
	}
	var b bytes.Buffer
	err := p.Render(&b)
	return b.Bytes(), err
}

// authority is a host with the port that clients use, unless that is the usual one.
func (a *Attester) authority(host string) string {
	if a.config.Port == nil {
		return host
	}
	if port := a.config.Port(); port != 443 {
		return net.JoinHostPort(host, strconv.Itoa(port))
	}
	return host
}

// judge is the gateway's own walk along the chain of its document. A page can't say which key it came with, so any of those that
// serve stands for it.
func (a *Attester) judge(s subject, d *ratls.Document, text []byte) ratls.Report {
	subject := ratls.Subject{Host: s.host, ID: s.id()}
	if keys := a.config.Certs.Keys(); len(keys) > 0 {
		subject.SPKI = keys[0].SPKI
	}
	if d.Challenge.Nonce != nil {
		subject.Nonce = d.Challenge.Nonce[:]
	}
	if d.Challenge.TLSExporter != nil {
		subject.Exporter = d.Challenge.TLSExporter[:]
	}
	ctx, cancel := context.WithTimeout(context.Background(), quoteTimeout)
	defer cancel()
	return a.chain.Verify(ctx, text, subject)
}

// describe is dstack's AppInfo of the gateway itself (dstack 0.6 guest-agent/rpc/proto/agent_rpc.proto), from its own evidence.
func (a *Attester) describe(d *ratls.Document) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), quoteTimeout)
	defer cancel()
	q, err := a.config.Verifier.Verify(ctx, d.Gateway.Quote)
	if err != nil {
		return nil, fmt.Errorf("own quote: %w", err)
	}
	info, err := ratls.DecodeAppInfo(q, d.Gateway.EventLog, d.Gateway.VMConfig)
	if err != nil {
		return nil, fmt.Errorf("own evidence: %w", err)
	}
	tcb, err := marshal(map[string]any{
		"mrtd": q.MRTD, "rtmr0": q.RTMR[0], "rtmr1": q.RTMR[1], "rtmr2": q.RTMR[2], "rtmr3": q.RTMR[3],
		"mr_aggregated": info.MRAggregated, "os_image_hash": info.OSImageHash, "compose_hash": info.ComposeHash, "device_id": info.DeviceID,
		"event_log": d.Gateway.EventLog, "app_compose": a.config.Platform.AppCompose(),
	})
	if err != nil {
		return nil, err
	}
	return marshal(map[string]any{
		"app_id": info.AppID, "instance_id": info.InstanceID, "app_cert": "", "tcb_info": string(bytes.TrimSpace(tcb)), "app_name": "dstack-gateway",
		"device_id": info.DeviceID, "mr_aggregated": info.MRAggregated, "os_image_hash": info.OSImageHash, "compose_hash": info.ComposeHash,
		"key_provider_info": string(info.KeyProviderInfo), "vm_config": d.Gateway.VMConfig, "cloud_vendor": "", "cloud_product": "",
	})
}
