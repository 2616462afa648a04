// Package adminpb is the generated protocol of the operator's service;
// admin.proto describes it.
package adminpb

// The sed takes out the protoc version, so that two releases of protoc that
// generate the same code give the same files.
//go:generate sh -c "protoc --plugin=$(go tool -n protoc-gen-go) --plugin=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative admin.proto && sed -i '/^\\/\\/ .*protoc  *v[0-9]/d' admin.pb.go admin_grpc.pb.go"
