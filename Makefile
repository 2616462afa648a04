# Every target works on a fresh clone: it fetches pinned tools through Go and
# installs missing Debian packages, or says which to install.

# The version is the last tag and what has come since; a tree without git has none.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
IMAGE   ?= nfs-csi/nfs-csi-driver:$(VERSION)
# ARCH is the architecture to build for, as Go calls it: amd64, arm64, ...
ARCH    ?= $(shell go env GOHOSTARCH)
# ENGINE builds the image: docker, buildah, or none for no container engine at all.
ENGINE  ?= $(shell if docker info >/dev/null 2>&1; then echo docker; elif command -v buildah >/dev/null; then echo buildah; else echo none; fi)

# The steps of `make test`, in order.
TEST_STEPS := fmt-check lint vet unit chart sanity acceptance real-nfs

BINARY     := bin/nfs-csi-driver$(if $(filter-out $(shell go env GOHOSTARCH),$(ARCH)),-$(ARCH))
TOOL       := go tool -modfile=hack/tools/go.mod
LINT       := golangci-lint
SCRIPTS    := .ci/run hack/need hack/steps hack/verify test/sanity/*.sh
BUILD_ARGS  = --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT)
IMAGE_TOOL := go run -C hack/tools ./image

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

##@ Use

.PHONY: build
build: ## Build the static binary into bin/ (ARCH=arm64 for another architecture)
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) go build -trimpath -buildvcs=false \
		-ldflags "-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)" -o $(BINARY) ./cmd/nfs-csi-driver

.PHONY: image
image: ## Build the container image into out/image.tar (ENGINE=docker|buildah|none)
	@$(MAKE) --no-print-directory image-$(ENGINE)
	$(IMAGE_TOOL) check $(CURDIR)/out/image.tar $(IMAGE)

.PHONY: image-docker
image-docker: | out
	docker build --platform linux/$(ARCH) $(BUILD_ARGS) --tag $(IMAGE) .
	docker save --output out/image.tar $(IMAGE)

.PHONY: image-buildah
image-buildah: | out
	buildah build --platform linux/$(ARCH) $(BUILD_ARGS) --tag $(IMAGE) .
	rm -f out/image.tar
	buildah push $(IMAGE) docker-archive:out/image.tar:$(IMAGE)

.PHONY: image-none
image-none: build | out
	$(IMAGE_TOOL) build -dockerfile $(CURDIR)/Dockerfile -binary $(CURDIR)/$(BINARY) \
		-arch $(ARCH) $(BUILD_ARGS) $(CURDIR)/out/image.tar $(IMAGE)

.PHONY: demo
demo: bin/demo ## Show the driver on a real cluster of two nodes (KEEP=1 leaves the cluster up)
	@exec bin/demo $(if $(filter-out 0 no false,$(KEEP)),-keep) -version $(VERSION)

.PHONY: demo-stop
demo-stop: bin/demo ## Stop the cluster that `make demo KEEP=1` left up
	@exec bin/demo stop

.PHONY: demo-nfs
demo-nfs: ## Show a volume's life on real NFS without Kubernetes, in seconds
	@go run ./test/demo/nfs

# Always built again: Go knows what has changed. Not `go run`, which ends at a signal
# before its program has.
.PHONY: bin/demo
bin/demo:
	@go build -buildvcs=false -o bin/demo ./test/demo

##@ Test

.PHONY: test
test: ## Run every check and test, with one closing summary
	@MAKE="$(MAKE)" hack/steps $(TEST_STEPS)

.PHONY: fmt-check
fmt-check: ## Show what `make fmt` would change
	@$(TOOL) $(LINT) fmt --diff

.PHONY: lint
lint: | out ## Run golangci-lint and shellcheck; results in out/lint.xml
	@hack/need shellcheck
	@shellcheck $(SCRIPTS)
	@$(TOOL) $(LINT) run --output.text.path=stdout --output.junit-xml.path=out/lint.xml ./...
	@cd hack/tools && go tool $(LINT) run --config=../../.golangci.yaml ./...
	@cd test/chart && go tool -modfile=../../hack/tools/go.mod $(LINT) run --config=../../.golangci.yaml ./...

.PHONY: vet
vet: ## Run go vet
	@go vet ./...

.PHONY: unit
unit: | out ## Run the Go tests with the race detector; results in out/unit.xml and out/unit.json
	@hack/need gcc /usr/include/stdlib.h:libc6-dev
	@cd hack/tools && go test ./...
	@status=0; CGO_ENABLED=1 $(TOOL) gotestsum --format pkgname-and-test-fails \
		--hide-summary=skipped --junitfile out/unit.xml \
		--jsonfile out/unit.json -- -race -timeout 20m ./... | tee out/unit.log || status=$$?; \
		tail -n 1 out/unit.log > out/unit.summary; exit $$status

.PHONY: chart
chart: | out ## Test the Helm chart; results in out/chart.xml
	@cd test/chart && go tool -modfile=../../hack/tools/go.mod gotestsum --format pkgname-and-test-fails \
		--junitfile $(CURDIR)/out/chart.xml -- ./... | tee $(CURDIR)/out/chart.log
	@tail -n 1 out/chart.log > out/chart.summary

.PHONY: sanity
sanity: | out ## Run csi-sanity on real NFS; results in out/sanity.xml
	@go run ./test/sanity | tee out/sanity.log; \
		{ grep -aE '^Ran [0-9]+ of' out/sanity.log || true; } | tail -n 1 > out/sanity.summary

.PHONY: acceptance
acceptance: | out ## Run the tests that need real NFS: bad input and dead servers; results in out/acceptance.xml
	@LAB=1 $(TOOL) gotestsum --format testname --junitfile out/acceptance.xml \
		-- -p 1 -count=1 -timeout 20m ./test/acceptance ./test/lab | tee out/acceptance.log
	@tail -n 1 out/acceptance.log > out/acceptance.summary

.PHONY: real-nfs
real-nfs: | out ## Mount, copy and run workers on real NFS: the packages' own tests there; results in out/real-nfs.xml
	@LAB=1 $(TOOL) gotestsum --format testname --junitfile out/real-nfs.xml \
		-- -p 1 -count=1 -timeout 20m -run '^TestLab' ./pkg/nfs/mount ./pkg/nfs/store ./pkg/nfs/worker | tee out/real-nfs.log
	@tail -n 1 out/real-nfs.log > out/real-nfs.summary

# IMAGE has the name that the chart knows. tee must outlive Ctrl-C, or what the tests
# say while they take the cluster down ends them.
.PHONY: e2e
e2e: | out ## Test the chart and the driver on a real cluster (RUN=TestName for one case); results in out/e2e.xml
	@echo "The programs of the cluster are built once for each version of them, into your cache: 20 to 40 minutes on two cores, the first time."
	@go build -buildvcs=false -o bin/cluster ./test/cluster/cmd/cluster
	@bin/cluster build
	@$(MAKE) --no-print-directory image VERSION=$(VERSION) IMAGE=nfs-csi/nfs-csi-driver:$(VERSION)
	@status=0; E2E=1 IMAGE_TAG=$(VERSION) $(TOOL) gotestsum --format standard-verbose \
		--junitfile out/e2e.xml -- -count=1 -parallel 4 -timeout 40m $(if $(RUN),-run '$(RUN)') ./test/e2e \
		| tee -i out/e2e.log || status=$$?; \
		tail -n 1 out/e2e.log > out/e2e.summary; exit $$status

.PHONY: ci
ci: ## Run everything that CI runs: make test, then make e2e, with one closing summary
	@MAKE="$(MAKE)" hack/steps $(TEST_STEPS) e2e

.PHONY: bench
bench: | out ## Measure the driver against bare NFS operations; results in out/bench.json
	@BENCH=1 go test -count=1 -v -run TestMillionFiles ./pkg/nfs/store
	@go run ./test/bench

##@ Develop

.PHONY: fmt
fmt: ## Format the code
	$(TOOL) $(LINT) fmt

.PHONY: generate
generate: ## Regenerate what is generated from other files of this tree
	@hack/need protoc:protobuf-compiler
	go generate ./...
	go mod tidy
	cd hack/tools && go mod tidy
	cd test/chart && go mod tidy && go run ./generate

.PHONY: verify
verify: ## Run `make generate`; fail with the diff when that changed anything
	@hack/verify $(MAKE) --no-print-directory generate

.PHONY: clean
clean: ## Remove bin/ and out/
	rm -rf bin out

.PHONY: help
help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

out:
	@mkdir -p out
