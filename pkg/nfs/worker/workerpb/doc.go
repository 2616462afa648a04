// Package workerpb is the generated protocol between the driver and its worker
// processes; worker.proto describes it.
package workerpb

// The sed takes out the protoc version, so that two releases of protoc that
// generate the same code give the same files.
//go:generate sh -c "protoc --plugin=$(go tool -n protoc-gen-go) --plugin=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative worker.proto && sed -i '/^\\/\\/ .*protoc  *v[0-9]/d' worker.pb.go worker_grpc.pb.go"
