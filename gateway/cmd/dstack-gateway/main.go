// Command dstack-gateway is the front door of confidential VMs: see its --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // the command's question has the answer no: a check failed, a configuration is wrong
	exitError  = 2 // the question could not be asked: bad usage, no connection
)

// exit ends the program with a code without another word.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program.
func run(ctx context.Context, args []string, out, errs *os.File) int {
	command := root(out, errs)
	command.SetArgs(args)
	err := command.ExecuteContext(ctx)
	var code exit
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintf(errs, "dstack-gateway: %v\n", err)
	return exitError
}
