# The two commands: `make demo` and `make test`, as root, on a fresh Debian or Ubuntu.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := clang libbpf-dev libc6-dev musl-tools gcc make python3-venv nftables libnftables1 iproute2 \
	iputils-ping ethtool tcpdump curl bpftool python3-bpfcc linux-headers-amd64 \
	udhcpc dnsmasq-base openvswitch-switch debootstrap debian-archive-keyring
SLURM_PACKAGES := slurmctld slurmd slurm-client slurmdbd munge libslurm-dev libpmi2-0 mariadb-server-core mariadb-client-core
SOURCES := $(wildcard protos/lark/v1/*.proto lark_agent/datapath/*.c lark_agent/datapath/*.h \
	lark_agent/hooks/native/*.c lark_agent/hooks/native/*.h lark_agent/schedulers/*.py)
PYTEST_WORKERS ?= 2
SUITE ?= trixie
MINUTES ?= 10
SECONDS ?= 60

.PHONY: help system build fuzzer demo test test-htcondor test-slurm mutants crash-points fuzz soak bench experiments kernel-matrix deb lint format clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

system: ## Install what comes from the distribution
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing" $$missing; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

$(VENV)/.installed: pyproject.toml setup.py
	@$(MAKE) --no-print-directory system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install -qq --editable '.[test,dev]'
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	@$(MAKE) --no-print-directory system
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py --quiet build_native
	@$(BIN)/python -m compileall -q lark_agent  # as pip does: compiling at every start costs memory
	@touch $@

build: $(VENV)/.built ## Compile and install into .venv

demo: build ## Show jobs in networks of their own, and compare with captures (KEEP=1 keeps it up)
	$(BIN)/python -m tests.lab.demo $(if $(KEEP),--keep)

fuzzer: build
	@$(MAKE) --no-print-directory system \
	  PACKAGES="libslurm-dev libclang-rt-$$(clang -dumpversion | cut -d. -f1)-dev"

test: fuzzer ## Run every test but those of the batch systems
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m 'not htcondor and not slurm'

test-htcondor: build ## Run jobs of a real HTCondor, of Debian's release SUITE (trixie, or sid)
	SUITE=$(SUITE) $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile tests/htcondor

test-slurm: build ## Run jobs of a real Slurm, this machine's release
	@$(MAKE) --no-print-directory system PACKAGES="$(SLURM_PACKAGES)"
	@[ -e lark_agent/hooks/native/bin/spank_lark.so ] || { rm -f $(VENV)/.built; $(MAKE) --no-print-directory build; }
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile tests/slurm

mutants: fuzzer ## Break each guard against hostile jobs and each promise, and see its test fail
	$(BIN)/python -m tests.mutants

crash-points: build ## Kill the agent at every named point (CI: at every sixth)
	CRASH_POINTS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) tests/agent/test_crash_points.py

fuzz: fuzzer ## Fuzz what the native programs read, each harness for SECONDS (ONLY="answer ad")
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ONLY)

soak: build ## Run jobs against kills, loss and full disks for MINUTES; books must equal the wire
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: build ## Measure what the wrapper adds to a job's start
	$(BIN)/python -m tests.bench.start

$(VENV)/.experiments: $(VENV)/.built
	$(BIN)/pip install -qq --editable '.[experiments]'
	@touch $@

experiments: build $(VENV)/.experiments ## Repeat LARK's experiments: data and figures in build/experiments
	$(BIN)/python -m tests.experiments

VM_PACKAGES := qemu-system-x86 e2fsprogs debootstrap debian-archive-keyring

kernel-matrix: build ## Test datapath and networks on Linux 5.10, 6.1, 6.12 and the newest (LARK_DRIVER=qemu without KVM)
	@$(MAKE) --no-print-directory system PACKAGES="$(VM_PACKAGES)"
	$(BIN)/python -m tests.machines.matrix

DEB_PACKAGES := debhelper dpkg-dev fakeroot clang libbpf-dev libc6-dev musl-tools gcc make python3-venv

deb: ## Build the Debian packages lark-agent, lark-collector and lark-client, into build/deb
	@$(MAKE) --no-print-directory system PACKAGES="$(DEB_PACKAGES)"
	rm -rf build/deb && mkdir -p build/deb/source
	git ls-files -z | xargs -0 cp --parents -t build/deb/source
	cd build/deb/source && dpkg-buildpackage --build=binary --no-sign >../build.log 2>&1 || { tail -30 ../build.log; exit 1; }
	rm -r build/deb/source && ls build/deb/*.deb

lint: build ## Style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

format: build ## Rewrite in house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## Remove what was built
	rm -rf $(VENV) build *.egg-info lark_agent/rpc/lark lark_agent/hooks/native/bin \
		lark_agent/hooks/native/environment.h lark_agent/datapath/*.o
