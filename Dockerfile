# The same image as `make image`, for those who build with Docker:
#
#     docker build --tag rollout-guard .
#
# `make image` needs neither an engine nor a registry (tests/kind/image.sh).
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# --target keeps the flag from build scripts and procedural macros
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin rollout-guard --target "$target" \
 && install -m 755 "target/$target/release/rollout-guard" /rollout-guard

FROM scratch
COPY --from=build /rollout-guard /rollout-guard
USER 65532:65532
ENTRYPOINT ["/rollout-guard"]
