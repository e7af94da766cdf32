# MICS: `make help` lists what there is.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TOOLS := $(CURDIR)/bin/tools
MODULES := allinone controlplane ctl examples/history gateway internal proto router sdk/go tests
export PATH := $(TOOLS):$(PATH)

.PHONY: help
help: ## what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | column -t -s $$'\t'

.PHONY: deps
deps: ## install what tests start, if missing: redis-server, and Java and Maven for Kafka (Debian packages)
	@missing=; \
	command -v redis-server >/dev/null || missing+=" redis-server"; \
	command -v java >/dev/null || missing+=" default-jre-headless"; \
	command -v mvn >/dev/null || missing+=" maven"; \
	[ -z "$$missing" ] || { \
	  echo "installing the Debian packages$$missing: the tests start their own servers on free ports"; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; }

.PHONY: test
test: deps ## all tests, with the race detector, a real Redis and a real Kafka
	MICS_REQUIRE_REDIS=1 MICS_REQUIRE_KAFKA=1 go test -race -timeout 15m work
	go test -count=1 ./tests/deps # the test cache does not see other modules' imports

.PHONY: test-k8s
test-k8s: ## the chart on a real Kubernetes: KUBECONFIG's, else a one-node cluster that MICS_K8S_CLUSTER starts (as root); about 20 minutes
	MICS_K8S=1 go test -count=1 -timeout 80m -v ./tests/k8s

.PHONY: build
build: ## the binaries, into bin/
	go build -trimpath -ldflags "-X github.com/mics-im/mics/internal/buildinfo.version=$(VERSION) -X github.com/mics-im/mics/ctl/internal/buildinfo.version=$(VERSION)" \
	  -o bin/ ./gateway/cmd/mics-gateway ./router/cmd/mics-router ./controlplane/cmd/mics-controlplane ./ctl/cmd/micsctl ./allinone/cmd/mics-dev ./tests/load/cmd/mics-load

# What the image holds, and how: the Dockerfile calls it too, so both make the same.
ROOTFS ?= $(CURDIR)/bin/rootfs
IMAGE ?= ghcr.io/mics-im/mics
PLATFORMS ?= linux/amd64,linux/arm64
CA_BUNDLE ?= /etc/ssl/certs/ca-certificates.crt
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.PHONY: rootfs
rootfs: ## the image's root file system, into bin/rootfs (GOOS, GOARCH, VERSION): static, reproducible, without a Docker engine
	rm -rf $(ROOTFS) && mkdir -p $(ROOTFS)/etc/ssl/certs
	build() { (cd $$1 && CGO_ENABLED=0 GOWORK=off go build -trimpath -buildvcs=false \
	  -ldflags "-s -w -X github.com/mics-im/mics/internal/buildinfo.version=$(VERSION) -X github.com/mics-im/mics/ctl/internal/buildinfo.version=$(VERSION)" \
	  -o $(ROOTFS)/$$2 ./cmd/$$2); }; \
	build gateway mics-gateway; build router mics-router; build controlplane mics-controlplane; build ctl micsctl
	install -m 0644 $(CA_BUNDLE) $(ROOTFS)/etc/ssl/certs/ca-certificates.crt
	echo 'mics:x:65532:65532::/:/none' > $(ROOTFS)/etc/passwd
	find $(ROOTFS) -exec touch -h -d @$(SOURCE_DATE_EPOCH) {} +

.PHONY: image
image: ## the container image, for PLATFORMS (needs docker buildx); pushes with IMAGE_OUTPUT=--push
	docker buildx build --platform $(PLATFORMS) --build-arg VERSION=$(VERSION) --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) \
	  -t $(IMAGE):$(VERSION) $(IMAGE_OUTPUT) .

.PHONY: chart-readme
chart-readme: ## charts/mics/README.md from the comments of its values
	go test -count=1 ./tests/chart -run TestReadmeIsCurrent -update

.PHONY: run
run: build ## a whole cluster in one process, with a demo tenant: says what to do next
	bin/mics-dev

CANARY_SESSIONS ?= 5000

.PHONY: canary
canary: deps ## whole canaries with CANARY_SESSIONS clients under traffic, good ones and bad ones (some minutes)
	MICS_REQUIRE_REDIS=1 MICS_CANARY_SESSIONS=$(CANARY_SESSIONS) go test -count=1 -timeout 40m -v ./tests/canary

CHAOS_DURATION ?= 10m
CHAOS_SEED ?= $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')

.PHONY: chaos
chaos: deps ## random faults on a real cluster for CHAOS_DURATION from CHAOS_SEED; prints a table
	@echo "seed $(CHAOS_SEED)"
	go test -count=1 -timeout 24h ./tests/chaos -run TestChaos -v -chaos.duration=$(CHAOS_DURATION) -chaos.seed=$(CHAOS_SEED)

.PHONY: bench
bench: build ## what a connection, a message and a connect cost in server CPU and memory; about ten minutes
	bin/mics-load all --bin bin --runs 3 --bare

.PHONY: bench-events
bench-events: deps ## what an event costs, and that messages do not notice a broker that is killed for 30 s; three minutes
	cd router && go test -count=1 -run xxx -bench . ./internal/event
	cd tests && go test -count=1 -timeout 10m ./broker -run TestMessagesDoNotNoticeAnOutage -v -broker.outage=30s

DRAIN_BENCH ?=

.PHONY: drain-bench
drain-bench: deps build ## drains and rolling restarts under traffic: 0 lost, 0 repeated, nobody disconnected, gap p99 < 50 ms; a quarter of an hour, or DRAIN_BENCH="--sessions 1000"
	bin/mics-load drain --bin bin $(DRAIN_BENCH)

.PHONY: tools
tools: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/golangci-lint ## build the pinned tools from source into bin/tools

$(TOOLS)/buf: tools/buf/go.mod
	cd tools/buf && GOWORK=off GOBIN=$(TOOLS) go install tool && touch $@
$(TOOLS)/protoc-gen-go: tools/protoc/go.mod
	cd tools/protoc && GOWORK=off GOBIN=$(TOOLS) go install tool && touch $@
$(TOOLS)/golangci-lint: tools/lint/go.mod
	cd tools/lint && GOWORK=off GOBIN=$(TOOLS) go install tool && touch $@

.PHONY: generate
generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go ## generated code from the .proto files
	buf generate

.PHONY: lint
lint: $(TOOLS)/buf $(TOOLS)/golangci-lint ## buf (lint and breaking changes), golangci-lint
	buf lint
	if git rev-parse -q --verify origin/main >/dev/null && git ls-tree -r --name-only origin/main | grep -q '^buf.yaml$$'; then \
	  buf breaking --against '.git#ref=refs/remotes/origin/main'; fi
	for m in $(MODULES); do \
	  if [ -n "$$(find $$m -name '*.go' -print -quit)" ]; then (cd $$m && golangci-lint run ./...); fi; done
