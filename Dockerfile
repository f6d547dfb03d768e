# The istio-proxy image: pilot-agent, the proxy and istio-iptables.
#   docker build -t pysidecar .
# Both containers take the arguments that the injector gives: `proxy sidecar ...` as uid 1337, and
# `istio-iptables -p 15001 ...` as root with NET_ADMIN and NET_RAW.
FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv
RUN python3 -m venv /opt/pysidecar
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY proxy /src/proxy
COPY agent /src/agent
COPY init /src/init
RUN /opt/pysidecar/bin/pip install --no-cache-dir -c /src/constraints.txt hatchling \
 && /opt/pysidecar/bin/pip install --no-cache-dir -c /src/constraints.txt --no-build-isolation /src \
 && /opt/pysidecar/bin/pip uninstall -y hatchling pathspec pluggy tomlkit trove-classifiers packaging \
 && /opt/pysidecar/bin/python -m compileall -q /opt/pysidecar/lib

FROM debian:12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 iptables nftables ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1337 istio-proxy \
 && useradd --uid 1337 --gid 1337 --no-create-home --home-dir / --shell /usr/sbin/nologin istio-proxy \
 && install -d -o 1337 -g 1337 /etc/istio/proxy /var/lib/istio/data /var/run/secrets/workload-spiffe-uds
COPY --from=build /opt/pysidecar /opt/pysidecar
RUN for command in pilot-agent istio-iptables istio-clean-iptables pysidecar-proxy; do \
      ln -s /opt/pysidecar/bin/$command /usr/local/bin/$command; \
    done
# Default paths of pilot-agent are relative to /.
WORKDIR /
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/pilot-agent"]
