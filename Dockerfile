# `make image` builds this with docker or buildah; without either, hack/tools/image
# builds the last stage itself, so keep that stage to FROM scratch, ARG, LABEL,
# COPY --from=build, USER and ENTRYPOINT.

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG COMMIT=unknown
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY pkg pkg
RUN CGO_ENABLED=0 GOOS=${TARGETOS:-linux} GOARCH=${TARGETARCH:-} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT}" \
    -o /nfs-csi-driver ./cmd/nfs-csi-driver

FROM scratch
ARG VERSION=dev
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="nfs-csi-driver" \
      org.opencontainers.image.description="CSI driver that provisions Kubernetes volumes as directories on NFS exports" \
      org.opencontainers.image.source="https://github.com/nfs-csi/nfs-csi-driver" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
COPY --from=build /nfs-csi-driver /nfs-csi-driver
# Mounting and chown need root; the worker processes that do the file work drop
# every capability but those.
USER 0:0
ENTRYPOINT ["/nfs-csi-driver"]
