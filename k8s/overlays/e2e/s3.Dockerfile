# An S3 server for the tests on a cluster; the build context is a folder with the program versitygw.
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE}
COPY versitygw /usr/local/bin/versitygw
USER 10001:10001
ENTRYPOINT ["versitygw"]
