package attest_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/attest"
)

func TestTurnsAreTheClientsWhateverTheyAskFor(t *testing.T) {
	for _, row := range []struct {
		name string
		come string // class:client:topic, in the order of their coming; "-" takes a job, and with "!" leaves it busy until "."
		want string // topic:clients of each job
	}{
		{"nobody", "", ""},
		{"one after the other", "n:a:x n:b:y n:c:z", "x:a y:b z:c"},
		{"all who wait for a topic are answered with it", "n:a:x n:b:y n:c:x", "x:ac y:b"},
		{"one client's many names are one client's", "n:a:1 n:a:2 n:a:3 n:a:4 n:b:x", "1:a x:b 2:a 3:a 4:a"},
		{"two who rotate delay a third by two", "n:a:1 n:a:2 n:b:3 n:b:4 n:c:x n:a:5", "1:a 3:b x:c 2:a 4:b 5:a"},
		{"who was answered with others stands last when it comes again", "n:a:x n:b:x n:c:y n:a:z - n:b:w", "x:ab y:c z:a w:b"},
		{"who names the topic is in its batch", "n:a:x n:a:y n:b:y n:c:z", "x:a y:ba z:c"},
		{"readers have turns of their own", "n:a:1 n:b:2 n:c:3 r:d:4 r:d:5", "1:a 4:d 2:b 5:d 3:c"},
		{"and those with a nonce have", "r:a:1 r:b:2 r:c:3 n:d:4", "4:d 1:a 2:b 3:c"},
		{"re-quotes come in between", "n:a:1 n:b:2 r:c:3 r:d:4 q::5 q::6", "1:a 3:c 5: 2:b 4:d 6:"},
		{"a reader takes the re-quote of its topic", "n:a:1 q::5 r:b:5", "1:a 5:b"},
		{"and the re-quote's turn answers the reader", "r:a:1 r:b:5 q::5 q::6", "1:a 5:b 6:"},
		{"who leaves is not answered", "n:a:x n:b:y !a n:c:x", "y:b x:c"},
		{"the last who leaves takes the topic along", "n:a:x n:b:y !a", "y:b"},
		{"a topic that is busy waits, its client does not", "n:a:x -! n:a:x n:a:y - . n:b:z", "x:a y:a x:a z:b"},
	} {
		t.Run(row.name, func(t *testing.T) {
			q := attest.NewQueue()
			var got []string
			for _, step := range strings.Fields(row.come) {
				switch {
				case step[0] == '-':
					if job := q.Take(step == "-!"); job != "" {
						got = append(got, job)
					}
				case step == ".":
					q.Done()
				case step[0] == '!':
					q.Leave(step[1:])
				default:
					part := strings.Split(step, ":")
					q.Push(part[0], part[1], part[2])
				}
			}
			for job := q.Take(false); job != ""; job = q.Take(false) {
				got = append(got, job)
			}
			if diff := cmp.Diff(strings.Fields(row.want), append([]string{}, got...)); diff != "" {
				t.Errorf("jobs (-want +got):\n%s", diff)
			}
			if !q.Empty() {
				t.Error("something is left behind")
			}
		})
	}
}

// The bounds are written out: who changes one has to look at what it protects.
func TestAQueueIsBounded(t *testing.T) {
	t.Run("topics of a client", func(t *testing.T) {
		q := attest.NewQueue()
		for i := range 10 {
			if !q.Join(client(1), i) {
				t.Fatalf("topic %d of a client is refused", i)
			}
		}
		if q.Join(client(1), 10) {
			t.Error("a client waits for 11 topics")
		}
		if !q.Join(client(1), 3) || !q.Join(client(2), 10) {
			t.Error("a topic that is waited for, or another client, is refused")
		}
	})
	t.Run("wishes of a client", func(t *testing.T) {
		q := attest.NewQueue()
		for i := range 256 {
			if !q.Join(client(1), 0) {
				t.Fatalf("wish %d is refused", i)
			}
		}
		if q.Join(client(1), 0) {
			t.Error("a client has 257 wishes")
		}
		if !q.Join(client(2), 0) {
			t.Error("another client is refused")
		}
	})
	t.Run("wishes of all, and those of a batch", func(t *testing.T) {
		q := attest.NewQueue()
		for i := range 32768 {
			if !q.Join(client(i), 0) {
				t.Fatalf("wish %d is refused", i)
			}
		}
		if q.Join(client(32768), 0) {
			t.Error("32769 wait")
		}
		if got := q.Batch(); got != 4096 {
			t.Errorf("a batch of %d, want 4096", got)
		}
		if !q.Join(client(32768), 0) {
			t.Error("there is room, and a caller is refused")
		}
	})
}
