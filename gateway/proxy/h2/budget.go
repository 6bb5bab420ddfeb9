package h2

// budget bounds what a client may do that costs the gateway more than the client: it begins full, loses one for each such thing, and gains some
// with each period that passes and each useful thing that happens.
type budget struct {
	used, most, rate int
}

// spend reports whether there was something left.
func (b *budget) spend() bool {
	b.used++
	return b.used <= b.most
}

func (b *budget) earn(n int) { b.used = max(0, b.used-n) }

// budgets are those of one connection. Every one ends it with ENHANCE_YOUR_CALM.
type budgets struct {
	resets   budget // streams that the client takes back, breaks or may not have (rapid reset, CVE-2023-44487); an answered request earns one
	control  budget // SETTINGS, PING, PRIORITY, unknown frames, and DATA or CONTINUATION without content
	updates  budget // WINDOW_UPDATE; every KiB that was sent earns one
	dribbles budget // DATA frames kept tiny by a window
}

func newBudgets() budgets {
	return budgets{
		resets: budget{most: 200, rate: 20}, control: budget{most: 400, rate: 40}, updates: budget{most: 4000, rate: 400},
		dribbles: budget{most: 200, rate: 20},
	}
}

// pass is called once a second.
func (b *budgets) pass() {
	for _, x := range [...]*budget{&b.resets, &b.control, &b.updates, &b.dribbles} {
		x.earn(x.rate)
	}
}

// tiny is the length below which a DATA frame is hardly worth its head, encryption and system call.
const tiny = 256
