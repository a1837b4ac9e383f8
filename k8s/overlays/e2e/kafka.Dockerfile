# Kafka for the tests on a cluster; the build context is the folder of its jars.
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE}
# Some builders mount the host's certificates read-only, so that Debian's Java cannot write its keystore beside them and
# the installation ends with an error; nothing here uses the keystore, and whether Java works is then seen.
RUN apt-get update -qq && mkdir -p /usr/share/man/man1 \
 && (apt-get install -y -qq --no-install-recommends default-jre-headless || true) && java -version && rm -rf /var/lib/apt/lists/*
COPY . /opt/kafka/
USER 10001:10001
