# The istio-proxy image: pilot-agent, the proxy, istio-iptables. `make image` builds it; so does `docker build .`
# Both containers of a pod take the arguments that the injector gives: `proxy sidecar ...` as uid 1337 with a read-only
# root, and `istio-iptables -p 15001 ...` as root with NET_ADMIN and NET_RAW.
#
# Three files of the machine that builds may come along as secrets, which leave no trace in the image: pip.conf, apt.conf,
# ca.crt (certificates to trust). scripts/image.py hands them in where the machine has them.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# gcc: python-iptables comes as source.
RUN --mount=type=secret,id=apt.conf --mount=type=secret,id=ca.crt,mode=0444 \
    export APT_CONFIG=$(ls /run/secrets/apt.conf 2>/dev/null); \
    apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends gcc libc6-dev python3 python3-venv
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The packages that the project needs change seldom: a layer of their own.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt,mode=0444 \
    python3 -m venv /build \
 && /build/bin/pip install -q -c constraints.txt hatchling setuptools \
 && /build/bin/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["libiptc"], sep="\n")' > requirements.txt \
 && /build/bin/pip wheel -q -w /wheels -c constraints.txt --no-build-isolation -r requirements.txt
COPY README.md LICENSE ./
COPY proxy proxy
COPY agent agent
COPY init init
# Sources of C extensions, stubs and tests of packages are of no use there. Unchecked: the compiled files stay valid
# whatever the time stamps become on their way through registries.
RUN /build/bin/pip wheel -q -w /wheels --no-deps --no-build-isolation . \
 && python3 -m venv --without-pip /opt/pysidecar \
 && /build/bin/pip --python /opt/pysidecar/bin/python install -q --no-compile --no-index --find-links /wheels \
    'pysidecar[libiptc]' \
 && cd /opt/pysidecar/lib \
 && find . -depth \( -name tests -o -name '*.py[xid]' -o -name '*.pxd' -o -name '*.[ch]' \) -exec rm -r {} + \
 && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash .

FROM ${BASE}
# Folders that the proxy's user writes to, where the pod mounts no volume over them. No program needs its setuid bit.
RUN --mount=type=secret,id=apt.conf --mount=type=secret,id=ca.crt,mode=0444 \
    export APT_CONFIG=$(ls /run/secrets/apt.conf 2>/dev/null); \
    apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    ca-certificates iptables nftables python3 \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/* \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
 && groupadd --gid 1337 istio-proxy \
 && useradd --uid 1337 --gid 1337 --no-create-home --home-dir / --shell /usr/sbin/nologin istio-proxy \
 && install -d -o 1337 -g 1337 /etc/istio/proxy /var/lib/istio/data /var/lib/istio/envoy /var/run/secrets/credential-uds \
    /var/run/secrets/workload-spiffe-uds /var/run/secrets/workload-spiffe-credentials
COPY --from=build /opt/pysidecar /opt/pysidecar
# ProxyConfig binaryPath is /usr/local/bin/envoy unless it says otherwise.
RUN ln -s /opt/pysidecar/bin/pilot-agent /opt/pysidecar/bin/istio-iptables /opt/pysidecar/bin/istio-clean-iptables \
    /opt/pysidecar/bin/pysidecar-proxy /usr/local/bin/ \
 && ln -s /opt/pysidecar/bin/pysidecar-proxy /usr/local/bin/envoy
ARG VERSION=unknown
LABEL org.opencontainers.image.title="pysidecar" \
      org.opencontainers.image.description="Istio sidecar in Python: pilot-agent, proxy and istio-iptables" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# Default paths of pilot-agent are relative to /.
WORKDIR /
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/pilot-agent"]
