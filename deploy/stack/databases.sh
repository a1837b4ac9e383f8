#!/bin/sh
# Run by the Postgres image once, when its volume is empty: a database with its owner for Dagster and for MLflow, and a
# role for Grafana that can only read Dagster's runs.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set dagster="$DAGSTER_DB_PASSWORD" --set mlflow="$MLFLOW_DB_PASSWORD" \
  --set grafana="$GRAFANA_DB_PASSWORD" <<'SQL'
CREATE ROLE dagster LOGIN PASSWORD :'dagster';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE ROLE grafana LOGIN PASSWORD :'grafana' CONNECTION LIMIT 10;
CREATE DATABASE dagster OWNER dagster;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE dagster, mlflow FROM PUBLIC;
GRANT CONNECT ON DATABASE dagster TO grafana;
\connect dagster
-- Dagster makes its tables when it starts first.
ALTER DEFAULT PRIVILEGES FOR ROLE dagster IN SCHEMA public GRANT SELECT ON TABLES TO grafana;
SQL
