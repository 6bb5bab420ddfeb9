package prpc_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/prpc"
)

// service answers Echo with what it read, and fails otherwise.
func service() *prpc.Service {
	return &prpc.Service{
		Trim: "Old.",
		Methods: map[string]func(*prpc.Call) (any, error){
			"Echo": func(c *prpc.Call) (any, error) {
				m := new(outer)
				return m, c.Read(m, 64, 0)
			},
			"Nothing": func(*prpc.Call) (any, error) { return new(prpc.Empty), nil },
			"Fail":    func(*prpc.Call) (any, error) { return nil, errors.New("went <wrong>: \xff") },
			"Later":   func(*prpc.Call) (any, error) { return nil, errLater },
		},
		Status: func(err error) int {
			if errors.Is(err, errLater) {
				return http.StatusServiceUnavailable
			}
			return http.StatusBadRequest
		},
	}
}

var errLater = errors.New("later")

func call(t *testing.T, method, url, media, body string) *httptest.ResponseRecorder {
	t.Helper()
	w, r := httptest.NewRecorder(), httptest.NewRequest(method, url, strings.NewReader(body))
	if media != "" {
		r.Header.Set("Content-Type", media)
	}
	service().ServeHTTP(w, r, strings.TrimPrefix(r.URL.Path, "/prpc/"))
	return w
}

const (
	asJSON  = "application/json"
	asProto = "application/octet-stream"
)

func TestBothFormsOfACall(t *testing.T) {
	empty := `{"text":"","inner":null,"small":0,"large":0,"bytes":"","list":[],"texts":[],"always":{"port":0,"flag":false},"distant":false,"private":""}`
	with := func(old, new string) string { return strings.Replace(empty, old, new, 1) }
	for _, row := range []struct {
		name, method, url, media, body string
		status                         int
		wantMedia, want                string
	}{
		{"protobuf", "POST", "/prpc/Echo", "", "\x0a\x02ab", 200, asProto, "\x0a\x02ab"},
		{"protobuf, empty", "POST", "/prpc/Echo", asProto, "", 200, asProto, ""},
		{"JSON by the query", "POST", "/prpc/Echo?json", "", `{"text":"<&>","new":[{}]}`, 200, asJSON, with(`"text":""`, `"text":"<&>"`)},
		{"JSON by the type", "POST", "/prpc/Echo", "application/json; charset=utf-8", `{"inner":{}}`, 200, asJSON, with("null", `{"port":0,"flag":false}`)},
		{"JSON, empty body", "POST", "/prpc/Echo?json=true", "", "", 200, asJSON, empty},
		{"JSON, 0 is no yes", "POST", "/prpc/Echo?json=0", "", "", 200, asProto, ""},
		{"query", "GET", "/prpc/Echo?text=a%20b&small=7&distant=true&inner[port]=443&list[0][port]=1&list[1][flag]=true&texts[0]=x&new=1&a[b]=1", "", "", 200, asJSON,
			`{"text":"a b","inner":{"port":443,"flag":false},"small":7,"large":0,"bytes":"","list":[{"port":1,"flag":false},{"port":0,"flag":true}],"texts":["x"],"always":{"port":0,"flag":false},"distant":true,"private":""}`},
		{"query that says nothing", "GET", "/prpc/Echo", "", "", 200, asJSON, empty},
		{"old prefix, twice", "POST", "/prpc/Old.Old.Nothing?json", "", "", 200, asJSON, "null"},
		{"nothing in protobuf", "POST", "/prpc/Nothing", "", "", 200, asProto, ""},

		{"error in JSON", "POST", "/prpc/Fail?json", "", "", 400, asJSON, "{\n  \"error\": \"went <wrong>: ?\"\n}"},
		{"error in protobuf", "POST", "/prpc/Fail", "", "", 400, asProto, "\x0a\x0fwent <wrong>: ?"},
		{"error that is ours", "POST", "/prpc/Later", "", "", 503, asProto, "\x0a\x05later"},
		{"unknown method", "POST", "/prpc/New.Echo", "", "", 400, asProto, "\x0a\x1bService not found: New.Echo"},
		{"unknown method by GET", "GET", "/prpc/x", "", "", 400, asJSON, "{\n  \"error\": \"Service not found: x\"\n}"},
		{"too large", "POST", "/prpc/Echo", "", strings.Repeat("x", 65), 400, asProto, "\x0a\x28payload too large: the limit is 64 bytes"},
		{"broken protobuf", "POST", "/prpc/Echo", "", "\x0a\x05ab", 400, asProto, "…unexpected EOF"},
		{"broken JSON", "POST", "/prpc/Echo?json", "", "{", 400, asJSON, "…unexpected EOF"},
		{"member twice", "POST", "/prpc/Echo?json", "", `{"text":"a","text":"b"}`, 400, asJSON, "…occurs twice"},
		{"number with letters", "GET", "/prpc/Echo?small=x", "", "", 400, asJSON, "…want a number"},
		{"bool with letters", "GET", "/prpc/Echo?distant=1", "", "", 400, asJSON, "…want true or false"},
		{"message without a field", "GET", "/prpc/Echo?inner=1", "", "", 400, asJSON, "…names a message"},
		{"field of a text", "GET", "/prpc/Echo?text[a]=1", "", "", 400, asJSON, "…is no message"},
		{"list with a gap", "GET", "/prpc/Echo?list[1][port]=1", "", "", 400, asJSON, "…want 0, 1 and so on"},
		{"list without index", "GET", "/prpc/Echo?list=1", "", "", 400, asJSON, "…give an index"},
		{"negative index", "GET", "/prpc/Echo?list[-1][port]=1", "", "", 400, asJSON, "…want 0, 1 and so on"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := call(t, row.method, row.url, row.media, row.body)
			body := w.Body.String()
			part, isPart := strings.CutPrefix(row.want, "…")
			if w.Code != row.status || w.Header().Get("Content-Type") != row.wantMedia || !isPart && body != row.want || !strings.Contains(body, part) {
				t.Errorf("%d %s\n%q, want %d %s\n%q", w.Code, w.Header().Get("Content-Type"), body, row.status, row.wantMedia, row.want)
			}
		})
	}
}

func TestOtherMethodsThanGetAndPost(t *testing.T) {
	for _, method := range []string{"PUT", "DELETE", "HEAD", "OPTIONS"} {
		if w := call(t, method, "/prpc/Echo", "", ""); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, POST" {
			t.Errorf("%s: %d %v", method, w.Code, w.Header())
		}
	}
}

// TestListsOfAQueryAreReadInOrder has more items than the order of letters bears.
func TestListsOfAQueryAreReadInOrder(t *testing.T) {
	var query []string
	var want []inner
	for i := range 120 {
		query = append(query, fmt.Sprintf("list[%d][port]=%d", i, i))
		want = append(want, inner{Port: uint32(i)})
	}
	w := call(t, "GET", "/prpc/Echo?"+strings.Join(query, "&"), "", "")
	var got struct{ List []inner }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(w.Body)
	}
	if diff := cmp.Diff(want, got.List); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

// FuzzQuery reads what strangers send.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"", "text=a", "list[0][port]=1&list[1][flag]=true", "inner[port]=1", "[[]]=1", "list[", "texts[0]=x&texts[0]=y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/prpc/Echo", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		service().ServeHTTP(w, r, "Echo")
		if w.Code != 200 && w.Code != 400 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%d %q", w.Code, w.Body)
		}
	})
}
