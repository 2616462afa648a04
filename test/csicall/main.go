// Command csicall makes one CSI call: csicall ENDPOINT METHOD REQUEST, for
// example
//
//	csicall unix:///csi/csi.sock Controller/CreateVolume '{"name":"pvc-1"}'
//
// Request and response are JSON. When the driver refuses the call, the message
// is on standard error and the exit code is 100 plus the gRPC code.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	_ "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// timeout is longer than any orchestrator's, so that the driver's own bounds show.
const timeout = 3 * time.Minute

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: csicall ENDPOINT METHOD REQUEST")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	response, err := call(ctx, os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, status.Convert(err).Message())
		os.Exit(100 + int(status.Code(err))) //nolint:gocritic // stop only frees the signal handler
	}
	fmt.Println(response)
}

func call(ctx context.Context, endpoint, method, request string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	in, out, path, err := messages(method)
	if err != nil {
		return "", err
	}
	if err := protojson.Unmarshal([]byte(request), in); err != nil {
		return "", fmt.Errorf("request: %w", err)
	}
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	// The driver may be starting: wait for its socket rather than fail at once.
	if err := conn.Invoke(ctx, path, in, out, grpc.WaitForReady(true)); err != nil {
		return "", err
	}
	return protojson.Format(out), nil
}

// messages returns empty request and response messages of "Service/Method".
func messages(method string) (in, out proto.Message, path string, err error) {
	service, name, _ := strings.Cut(method, "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("csi.v1." + service + "." + name))
	if err != nil {
		return nil, nil, "", fmt.Errorf("method %q: %w", method, err)
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, nil, "", fmt.Errorf("%q is not a method", method)
	}
	if in, err = newMessage(m.Input()); err != nil {
		return nil, nil, "", err
	}
	if out, err = newMessage(m.Output()); err != nil {
		return nil, nil, "", err
	}
	return in, out, "/csi.v1." + method, nil
}

func newMessage(d protoreflect.MessageDescriptor) (proto.Message, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil, err
	}
	return t.New().Interface(), nil
}
