# Build
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY .sqlx .sqlx
COPY migrations migrations
COPY src src
COPY benches benches
# The caches let the next build compile only what has changed. They are not in the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=lockwatch-target,target=/build/target \
    cargo build --release --locked --bin lockwatch \
 && cp target/release/lockwatch /usr/local/bin/lockwatch

# Run: the program and the certificates it trusts. The database is outside: give a DATABASE_URL.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lockwatch
COPY --from=build /usr/local/bin/lockwatch /usr/local/bin/lockwatch
USER 10001
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=6s --start-period=10s CMD ["lockwatch", "healthcheck"]
ENTRYPOINT ["lockwatch"]
CMD ["serve"]
