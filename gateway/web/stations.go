package web

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// station is one part of the picture.
type station struct {
	Name, Title, About string
	Links              []link
}

// link is a check of ratls.Chain, and what it means to people. A link is optional when a page has nothing to compare with: its being
// skipped does not make the station one that was skipped.
type link struct {
	Name, Title string
	Optional    bool
}

// stations divide the links of ratls.Chain from the root of trust to the app. The browser's verifier reads this division from the page.
var stations = []station{
	{"machine", "Machine", "A processor that keeps its host out of the gateway's memory, vouched for by its maker.", []link{
		{"gateway-quote", "The quote is signed, below an accepted root", false},
		{"gateway-tcb", "The maker calls platform, module and enclave up to date", false},
	}},
	{"gateway", "Gateway", "The program in that machine, as it was measured.", []link{
		{"document", "The document is well formed", false},
		{"gateway-event-log", "The event log replays to RTMR3", false},
		{"gateway-measurements", "It is the program that you expect", true},
		{"challenge", "It answers the nonce of this visit", false},
		{"statement", "The quote is over the statement", false},
		{"freshness", "The statement is current", false},
	}},
	{"key", "Key", "The TLS keys of this name, which that program alone holds.", []link{
		{"certificate-key", "This connection's key is one of them", false},
	}},
	{"name", "Name", "The name in your address bar.", []link{
		{"host", "The statement is about this name", false},
	}},
	{"tunnel", "Tunnel", "WireGuard, from the gateway to the app's machine.", []link{
		{"app-evidence", "The statement names the evidence of every instance", false},
		{"app-binding", "The app's quote is over what it is bound to", false},
		{"wireguard-key", "App and gateway name the same WireGuard key", false},
	}},
	{"app", "App", "The program that answers, as it was measured in a machine of its own.", []link{
		{"app-quote", "The quote is signed, below an accepted root", false},
		{"app-tcb", "The maker calls platform, module and enclave up to date", false},
		{"rtmr3-replay", "The event log replays to RTMR3", false},
		{"app-identity", "It is the app that the name names", false},
		{"app-compose", "The compose file has the measured hash", false},
		{"app-measurements", "It is the program that you expect", true},
		{"app-freshness", "The app itself answers the nonce of this visit", true},
		{"instance", "The tunnel ends at the instance that was quoted", false},
	}},
}

// Stations are the parts of the picture, in the order from the root of trust to the app. They are the values of Fact.Station.
func Stations() []string {
	names := make([]string, 0, len(stations))
	for _, s := range stations {
		names = append(names, s.Name)
	}
	return names
}

// view is a station with its state.
type view struct {
	Name, Title, About, State string
	Links                     []linkView
	Facts                     []factGroup
	Apps                      []App
}

// linkView is a link with its state, and its detail for each party that it was checked for.
type linkView struct {
	link
	State   string
	Details []string
}

// factGroup is the facts of one instance, or of none.
type factGroup struct {
	Instance string
	Facts    []Fact
}

// status is the status of a check as it is shown: what is not known fails.
func status(s string) string {
	if s == Pass || s == Skip {
		return s
	}
	return Fail
}

// views divides the verdict among the stations. Checks of unknown names go to the gateway, so that no failure is lost.
func (a Attestation) views() []view {
	views := make([]view, len(stations))
	for i, s := range stations {
		views[i] = view{Name: s.Name, Title: s.Title, About: s.About}
		for _, l := range s.Links {
			views[i].Links = append(views[i].Links, a.linkView(l))
		}
		for _, f := range a.Facts {
			if f.Station == s.Name {
				views[i].add(f)
			}
		}
	}
	for _, c := range a.Checks {
		if !slices.ContainsFunc(stations, func(s station) bool { return s.has(c.Name) }) {
			views[1].Links = append(views[1].Links, a.linkView(link{Name: c.Name, Title: c.Name}))
		}
	}
	for i := range views {
		views[i].State = state(views[i].Links)
	}
	views[len(views)-1].Apps = a.Apps
	return views
}

func (s station) has(name string) bool {
	return slices.ContainsFunc(s.Links, func(l link) bool { return l.Name == name })
}

// linkView gathers what the checks say of a link: it fails when one does, and passes when all do.
func (a Attestation) linkView(l link) linkView {
	v := linkView{link: l}
	for _, c := range a.Checks {
		if c.Name != l.Name {
			continue
		}
		if s := status(c.Status); v.State == "" || s == Fail || s == Skip && v.State == Pass {
			v.State = s
		}
		if !slices.Contains(v.Details, c.Detail) {
			v.Details = append(v.Details, c.Detail)
		}
	}
	if v.State == "" {
		v.State, v.Details = Skip, []string{"not checked"}
	}
	return v
}

// add files a fact under its instance.
func (v *view) add(f Fact) {
	i := slices.IndexFunc(v.Facts, func(g factGroup) bool { return g.Instance == f.Instance })
	if i < 0 {
		i, v.Facts = len(v.Facts), append(v.Facts, factGroup{Instance: f.Instance})
	}
	v.Facts[i].Facts = append(v.Facts[i].Facts, f)
}

// state of a station: it fails when any link does, and passes when all do but optional ones.
func state(links []linkView) string {
	all := Pass
	for _, l := range links {
		switch {
		case l.State == Fail:
			return Fail
		case l.State == Skip && !l.Optional:
			all = Skip
		}
	}
	return all
}

// block is a named part of a compose file.
type block struct{ Name, Text string }

// readable takes an app-compose.json apart for people: texts of several lines are shown as they are, the rest as indented JSON. What
// is no JSON object is shown as it is.
func readable(compose string) []block {
	var members map[string]json.RawMessage
	if json.Unmarshal([]byte(compose), &members) != nil {
		return []block{{"app-compose.json", compose}}
	}
	var texts []block
	for name, raw := range members {
		var text string
		if json.Unmarshal(raw, &text) == nil && strings.Contains(text, "\n") {
			texts = append(texts, block{name, text})
			delete(members, name)
		}
	}
	slices.SortFunc(texts, func(a, b block) int { return strings.Compare(a.Name, b.Name) })
	var rest bytes.Buffer
	encoder := json.NewEncoder(&rest)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(members); err != nil {
		return []block{{"app-compose.json", compose}}
	}
	return append(texts, block{"everything else", rest.String()})
}
