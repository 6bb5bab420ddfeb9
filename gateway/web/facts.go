package web

import (
	"slices"
	"strings"
)

// Claimed files a claim of a ratls.Report: under the station that it belongs to, with the instance that it is about, and with where it
// comes from in its name.
func Claimed(hop, name, value, source string) Fact {
	f := Fact{Name: name + " (" + source + ")", Value: value}
	place, instance, _ := strings.Cut(hop, " ")
	switch place {
	case "app":
		f.Station, f.Instance = "app", instance
		if slices.Contains([]string{"tunnel_wg_public_key", "wg_public_key", "binding"}, name) {
			f.Station = "tunnel"
		}
	case "statement":
		f.Station = statedOf(name)
	default:
		f.Station = "gateway"
		if ofMachine(name) {
			f.Station = "machine"
		}
	}
	return f
}

// ofMachine tells what a quote says of the machine from what it says of the program in it.
func ofMachine(name string) bool {
	return strings.HasPrefix(name, "tcb_") || slices.Contains([]string{"kind", "quote_version", "fmspc", "ppid", "tee_tcb_svn", "td_attributes"}, name)
}

// statedOf is the station that a member of the gateway's statement belongs to.
func statedOf(name string) string {
	switch {
	case strings.HasPrefix(name, "tls_key_"), name == "acme_account", name == "caa":
		return "key"
	case name == "host", name == "node":
		return "name"
	}
	return "gateway"
}
