# A static binary on nothing else. It needs NET_ADMIN for WireGuard in the kernel or on a TUN, and NET_BIND_SERVICE for ports 53 and 443:
#   docker run --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_BIND_SERVICE --device /dev/net/tun -v dstack-gateway:/var/lib/dstack-gateway …
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags=-s -o /dstack-gateway ./gateway/cmd/dstack-gateway

FROM gcr.io/distroless/static-debian12
COPY --from=build /dstack-gateway /usr/bin/dstack-gateway
COPY configs/gateway.minimal.toml /etc/dstack-gateway/gateway.toml
VOLUME /var/lib/dstack-gateway
EXPOSE 443/tcp 53/udp 53/tcp 8000/tcp 51820/udp
ENTRYPOINT ["/usr/bin/dstack-gateway"]
CMD ["serve"]
