# dstack-gateway: `make demo` shows it, `make test` tests it. Go and make are all that is needed.
GO ?= go
# The race detector links with C; a machine without a C compiler tests without it, and says so.
RACE := $(shell command -v $$($(GO) env CC) >/dev/null 2>&1 && echo -race)
# Tests of the command lines the README shows use the default ports.
TEST_FLAGS ?= $(RACE) -shuffle=on -timeout=12m

.PHONY: build demo test check bench-dns bench-enroll

build: ## build ./dstack-gateway
	@CGO_ENABLED=0 $(GO) build -trimpath -o dstack-gateway ./gateway/cmd/dstack-gateway

demo: build ## run a whole gateway with two apps on this machine
	@./dstack-gateway demo

check: build ## run the demo against itself: exit 0 when everything it prints works
	@./dstack-gateway demo --check

test: ## vet and test everything
	@$(if $(RACE),,echo "no C compiler: testing without the race detector")
	$(GO) vet ./...
	$(GO) test $(TEST_FLAGS) ./...

bench-dns: ## compare the DNS server with Knot, NSD and CoreDNS, which it installs; needs root and a quiet machine, BENCH=-h tells more
	@$(GO) run ./dnsserver/dnsbench $(BENCH)

bench-enroll: ## measure registrations, and the proxy while they go on; wants a quiet machine, BENCH=-h tells more
	@$(GO) run ./gateway/enroll/enrollbench $(BENCH)
