package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

const (
	// serviceAddress is that of the service kubernetes.default. There is no kube-proxy: the host's
	// end of the network owns the address, and everyone's default route leads there.
	serviceAddress = "10.96.0.1"
	serviceSubnet  = "10.96.0.0/16"
	podSubnet      = "10.244.0.0/16" // a /24 of it on every node
	apiPort        = "443"           // the service's, since nothing translates ports
)

// controlPlane is the cluster's brain: etcd, API server, controller manager and scheduler.
type controlPlane struct {
	netns     string
	address   string // of the API server in the lab's network
	logDir    string
	authority *authority
	programs  programs
	forwarder *forwarder
	processes []*process // in the order of their start
	client    *http.Client
}

// newControlPlane makes keys, certificates and kubeconfigs. Nothing runs yet but the forwarder,
// whose address is in the kubeconfig of the administrator.
func newControlPlane(netns, address, dir, logDir string, p programs) (*controlPlane, error) {
	a, err := newAuthority(dir)
	if err != nil {
		return nil, err
	}
	cp := &controlPlane{netns: netns, address: address, logDir: logDir, authority: a, programs: p}
	if cp.forwarder, err = newForwarder(netns, cp.hostPort()); err != nil {
		return nil, err
	}
	if err := cp.issueAll(); err != nil {
		cp.forwarder.close()
		return nil, err
	}
	return cp, nil
}

func (cp *controlPlane) hostPort() string { return net.JoinHostPort(cp.address, apiPort) }

// url is where the cluster's own programs find the API server.
func (cp *controlPlane) url() string { return "https://" + cp.hostPort() }

func (cp *controlPlane) issueAll() error {
	a := cp.authority
	const admins = "system:masters"
	for _, c := range []struct {
		name, user, group string
		hosts             []string
	}{
		{"kube-apiserver", "kube-apiserver", "", []string{
			cp.address, serviceAddress, "127.0.0.1", "localhost",
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		}},
		{"kubelet-client", "kube-apiserver-kubelet-client", admins, nil},
		{"front-proxy", "front-proxy", "", nil},
	} {
		if _, _, err := a.issue(c.name, c.user, c.group, c.hosts...); err != nil {
			return err
		}
	}
	if err := a.signingKey("service-accounts.key"); err != nil {
		return err
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		if err := a.kubeconfig(name, cp.url(), "system:"+name, ""); err != nil {
			return err
		}
	}
	if err := a.kubeconfig("admin", "https://"+cp.forwarder.address(), "admin", admins); err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(a.file("admin.crt"), a.file("admin.key"))
	if err != nil {
		return fmt.Errorf("certificate for admin: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	cp.client = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // no connection is left open when the cluster closes
		TLSClientConfig:   &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	}}
	return nil
}

// start starts the programs and returns when the API server is ready.
func (cp *controlPlane) start(ctx context.Context) error {
	if err := cp.run("etcd",
		"--name=lab", "--data-dir="+cp.authority.file("etcd"),
		"--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380",
	); err != nil {
		return err
	}
	f := cp.authority.file
	if err := cp.run("kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--secure-port="+apiPort, "--advertise-address="+cp.address,
		"--service-cluster-ip-range="+serviceSubnet,
		"--tls-cert-file="+f("kube-apiserver.crt"), "--tls-private-key-file="+f("kube-apiserver.key"),
		"--client-ca-file="+f("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+f("service-accounts.key"),
		"--service-account-signing-key-file="+f("service-accounts.key"),
		"--requestheader-client-ca-file="+f("ca.crt"), "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+f("front-proxy.crt"), "--proxy-client-key-file="+f("front-proxy.key"),
		"--kubelet-client-certificate="+f("kubelet-client.crt"), "--kubelet-client-key="+f("kubelet-client.key"),
		"--kubelet-certificate-authority="+f("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
	); err != nil {
		return err
	}
	if err := cp.waitReady(ctx); err != nil {
		return err
	}
	config := f("kube-controller-manager.kubeconfig")
	if err := cp.run("kube-controller-manager",
		"--kubeconfig="+config, "--authentication-kubeconfig="+config, "--authorization-kubeconfig="+config,
		"--bind-address=127.0.0.1", "--leader-elect=false",
		"--use-service-account-credentials",
		"--service-account-private-key-file="+f("service-accounts.key"), "--root-ca-file="+f("ca.crt"),
		"--service-cluster-ip-range="+serviceSubnet,
		// A lost node is found after 20 seconds, not 50; see nodeLeaseDurationSeconds of the kubelet.
		"--node-monitor-grace-period=20s",
		// With the default, 20, a hundred claims at once measure nothing else.
		"--kube-api-qps=200", "--kube-api-burst=400",
	); err != nil {
		return err
	}
	config = f("kube-scheduler.kubeconfig")
	return cp.run("kube-scheduler",
		"--kubeconfig="+config, "--authentication-kubeconfig="+config, "--authorization-kubeconfig="+config,
		"--bind-address=127.0.0.1", "--leader-elect=false",
	)
}

func (cp *controlPlane) run(name string, args ...string) error {
	log := filepath.Join(cp.logDir, name+".log")
	p, err := startProcess(cp.netns, log, append([]string{cp.programs[name].path}, args...)...)
	if err != nil {
		return err
	}
	cp.processes = append(cp.processes, p)
	return nil
}

// waitReady waits until the API server says that it is ready: its hooks have run, among them the
// one that makes the default roles.
func (cp *controlPlane) waitReady(ctx context.Context) error {
	url := "https://" + cp.forwarder.address() + "/readyz?verbose"
	var last error
	for {
		if last = cp.get(ctx, url); last == nil {
			return nil
		}
		if err := cp.ended(); err != nil {
			return fmt.Errorf("start the control plane: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server does not get ready (log in %s): %w; %w", cp.logDir, ctx.Err(), last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (cp *controlPlane) get(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := cp.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// ended returns why programs of the control plane do not run any more, or nil.
func (cp *controlPlane) ended() error {
	var errs []error
	for _, p := range cp.processes {
		errs = append(errs, p.ended())
	}
	return errors.Join(errs...)
}

// close ends everything at once; the state goes with the cluster.
func (cp *controlPlane) close() error {
	var errs []error
	for i := len(cp.processes) - 1; i >= 0; i-- {
		errs = append(errs, cp.processes[i].kill())
	}
	cp.forwarder.close()
	return errors.Join(errs...)
}
