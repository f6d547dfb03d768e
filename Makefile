# Every target does its own set-up (scripts/setup.py): nothing has to be installed or activated first.
.DEFAULT_GOAL := help
.PHONY: help demo demo-stop test bench lint soak image image-base image-test clean
RUN := ./scripts/run

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## watch traffic being captured, balanced, logged and drained (KEEP=1 leaves it running)
	@$(RUN) demo python -m demo

demo-stop: ## end what KEEP=1 left running
	@$(RUN) demo python -m demo --stop

test: ## lint, types and all tests: unit, conformance, network namespaces, end to end
	@$(RUN) test scripts/check

bench: ## compare with Envoy and HAProxy, capture with iptables-restore, DNS with dnsmasq and unbound
	@$(RUN) bench python -m bench.capture
	@$(RUN) bench python -m bench.dns
	@$(RUN) bench python -m bench.limits
	@$(RUN) bench python -m bench

lint: ## ruff and mypy --strict
	@$(RUN) lint scripts/lint

soak: ## connection limits among dying workers, then an hour of mixed load (SECONDS=600 for less)
	@$(RUN) demo python -m demo.limits
	@$(RUN) demo python -m demo.soak $(if $(SECONDS),--seconds $(SECONDS))

image: ## build the image pysidecar:<version> with podman, buildah or docker (FRESH=1: take nothing from earlier builds)
	@$(RUN) scripts/image.py build

image-base: ## where no registry of images is reachable: make the base image with debootstrap, as root
	@$(RUN) scripts/image.py base

image-test: image ## run the image with podman, as root: its contents, a pod of init container, sidecar and application
	@$(RUN) image scripts/image_test

clean: ## remove the virtual environment, the installed copy and caches
	@$(RUN) remove
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +
