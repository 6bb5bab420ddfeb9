# dstack-gateway: `make demo` shows it, `make test` tests it. Go and make are all that is needed.
GO ?= go
# The race detector links with C; a machine without a C compiler tests without it, and says so.
RACE := $(shell command -v $$($(GO) env CC) >/dev/null 2>&1 && echo -race)
# Tests of the command lines the README shows use the default ports.
TEST_FLAGS ?= $(RACE) -shuffle=on -timeout=12m
# make test ARTIFACTS=DIR keeps what the browser showed, as pictures.
ifneq ($(ARTIFACTS),)
TEST_FLAGS += -artifacts -outputdir=$(abspath $(ARTIFACTS))
endif
# What strangers send in, and the target that changes it. Without -fuzzminimizetime, minimizing takes all the time there is.
FUZZTIME ?= 10m
FUZZ_RATLS = FuzzParseQuote FuzzVerify FuzzEventLog FuzzAttestation FuzzAttestationV1 FuzzCertificate FuzzStatement FuzzAppStatement FuzzAppEvidence FuzzDocument

.PHONY: build demo test check fuzz bench-dns bench-enroll

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

fuzz: ## fuzz everything that is read of attestation, each for FUZZTIME
	@set -e; \
	for target in $(FUZZ_RATLS); do $(GO) test ./ratls -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x; done; \
	for target in FuzzParseBundle FuzzBundle; do $(GO) test ./gateway/verify -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x; done; \
	$(GO) test ./gateway/explorer -run '^$$' -fuzz '^FuzzLook$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 1x

bench-dns: ## compare the DNS server with Knot, NSD and CoreDNS, which it installs; needs root and a quiet machine, BENCH=-h tells more
	@$(GO) run ./dnsserver/dnsbench $(BENCH)

bench-enroll: ## measure registrations, and the proxy while they go on; wants a quiet machine, BENCH=-h tells more
	@$(GO) run ./gateway/enroll/enrollbench $(BENCH)
