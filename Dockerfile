# All of MICS' programs in one image FROM scratch: `/mics-gateway`, `/mics-router`,
# `/mics-controlplane`, `/micsctl`. Multi-arch by cross-compiling; see `make image`.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS=linux
ARG TARGETARCH=amd64
ARG VERSION=dev
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH make rootfs ROOTFS=/rootfs VERSION=$VERSION SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH

FROM scratch
COPY --from=build /rootfs/ /
USER 65532:65532
ENTRYPOINT ["/mics-gateway"]
