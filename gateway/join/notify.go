package join

import (
	"log/slog"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells the service manager (sd_notify(3)); without one it does nothing.
type notifier struct{ log *slog.Logger }

// tell sends assignments, which must each be one line.
func (n notifier) tell(assignments ...string) {
	for i, a := range assignments {
		assignments[i] = strings.ReplaceAll(a, "\n", "; ")
	}
	if _, err := daemon.SdNotify(false, strings.Join(assignments, "\n")); err != nil {
		n.log.Warn("the service manager was not told", "error", err)
	}
}

// alive tells the watchdog that the agent turns.
func (n notifier) alive() { n.tell(daemon.SdNotifyWatchdog) }
