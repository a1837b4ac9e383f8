# The images of this project, all from one source and one lock file:
#   --target inference   what runs in the pods; publishing a model puts one layer with /model on top of it (the default)
#   --target dagster     Dagster's code location, webserver and daemon
#   --target stack       the same for deploy/compose.yaml: with Java, so that Spark runs in the run itself, and its instance
#   --target spark       the Spark applications, driver and executors
# PYTHON_IMAGE is a Debian with Python 3.11 to 3.14: pin it by digest in production.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG UV_VERSION=0.9.13
ENV UV_PROJECT_ENVIRONMENT=/opt/venv UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir "uv==${UV_VERSION}"
WORKDIR /src
COPY pyproject.toml uv.lock README.md LICENSE ./

FROM build AS inference-build
RUN uv sync --locked --no-dev --no-install-project --extra inference --python "$(command -v python3)" \
 # never used at run time
 && find /opt/venv -depth \( -name tests -o -name test -o -name include -o -name '*.pyi' -o -name '*.a' \) -exec rm -rf {} + \
 && rm -rf /opt/venv/lib/python3*/site-packages/onnxruntime/tools /opt/venv/lib/python3*/site-packages/onnxruntime/transformers
COPY mlops_assets/__init__.py /opt/app/mlops_assets/__init__.py
COPY mlops_assets/clicks /opt/app/mlops_assets/clicks
COPY mlops_assets/inference /opt/app/mlops_assets/inference
# compiled here, since the root file system of a pod is read-only
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib /opt/app || true

FROM build AS dagster-build
COPY mlops_assets ./mlops_assets
RUN uv sync --locked --no-dev --no-editable --extra pipeline --python "$(command -v python3)"

FROM build AS spark-build
RUN uv sync --locked --no-dev --compile-bytecode --no-install-project --extra spark-cluster --python "$(command -v python3)"

FROM ${PYTHON_IMAGE} AS java
# Some builders mount the host's certificates read-only, so that Debian's Java cannot write its keystore beside them and
# the installation ends with an error; whether Java works is then seen.
# No version: Debian's mirrors keep only the newest, so a pinned one would soon not build any more.
# hadolint ignore=DL3008
RUN mkdir -p /usr/share/man/man1 && apt-get update -qq \
 && (apt-get install -y -qq --no-install-recommends default-jre-headless || true) && java -version \
 && rm -rf /var/lib/apt/lists/*

FROM java AS spark-jars
COPY --from=spark-build /opt/venv /opt/venv
COPY mlops_assets/__init__.py /src/mlops_assets/__init__.py
COPY mlops_assets/resources/__init__.py mlops_assets/resources/programs.py mlops_assets/resources/s3a.py /src/mlops_assets/resources/
WORKDIR /src
RUN MLOPS_CACHE=/src/cache /opt/venv/bin/python -c "from mlops_assets.resources import s3a; s3a.install('/opt/jars')"

FROM ${PYTHON_IMAGE} AS dagster
COPY --from=dagster-build /opt/venv /opt/venv
COPY workspace.yaml deploy/dagster.yaml /opt/dagster/
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 DAGSTER_HOME=/opt/dagster HOME=/tmp
WORKDIR /opt/dagster
USER 10001:10001
EXPOSE 4000
CMD ["dagster", "code-server", "start", "--host", "0.0.0.0", "--port", "4000", "--module-name", "mlops_assets.definitions"]

FROM java AS stack
COPY --from=dagster /opt /opt
COPY --from=spark-jars /src/cache /var/cache/mlops-assets
COPY deploy/stack/workspace.yaml deploy/stack/instance.yaml /opt/dagster/
# Java wants its user to have a name and a home; a new named volume takes the owner of the folder that it is mounted on
RUN echo 'dagster:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd && cat /opt/dagster/instance.yaml >> /opt/dagster/dagster.yaml \
 && install -d -o 10001 -g 10001 /var/lib/mlops-assets && chown -R 10001:10001 /opt/dagster
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYSPARK_PYTHON=/opt/venv/bin/python DAGSTER_HOME=/opt/dagster HOME=/tmp \
    MLOPS_CACHE=/var/cache/mlops-assets
WORKDIR /opt/dagster
USER 10001:10001

FROM java AS spark
# Hadoop wants its user to have a name
RUN echo 'spark:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd && mkdir -p /opt/spark/conf
COPY --from=spark-build /opt/venv /opt/venv
COPY --from=spark-jars /opt/jars/ /opt/jars/
RUN ln -s /opt/jars/* /opt/venv/lib/python3*/site-packages/pyspark/jars/
COPY mlops_assets/resources/spark_log.properties /opt/spark/conf/log4j2.properties
# last, for it changes most and is small
COPY mlops_assets /opt/app/mlops_assets
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYSPARK_PYTHON=/opt/venv/bin/python SPARK_CONF_DIR=/opt/spark/conf HOME=/tmp
WORKDIR /tmp
USER 10001:10001
# an executor, whose one argument Spark's scheduler gives; a driver pod names an application instead
ENTRYPOINT ["python", "-m", "mlops_assets.spark.executor"]

FROM ${PYTHON_IMAGE} AS inference
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mlops-assets inference" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=inference-build /opt/venv /opt/venv
COPY --from=inference-build /opt/app /opt/app
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 METRICS_PORT=9091
USER 10001:10001
EXPOSE 9091
# for Docker; Kubernetes has its own probes
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"METRICS_PORT\"]}/live', timeout=2)"]
ENTRYPOINT ["python", "-m", "mlops_assets.inference", "--model", "/model"]
