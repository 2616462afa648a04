package kube

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// kubeconfig is the file format of
// https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/, as far as it
// is understood here.
type kubeconfig struct {
	CurrentContext string `yaml:"current-context"`
	Contexts       []struct {
		Name    string `yaml:"name"`
		Context struct {
			Cluster string `yaml:"cluster"`
			User    string `yaml:"user"`
		} `yaml:"context"`
	} `yaml:"contexts"`
	Clusters []struct {
		Name    string            `yaml:"name"`
		Cluster kubeconfigCluster `yaml:"cluster"`
	} `yaml:"clusters"`
	Users []struct {
		Name string         `yaml:"name"`
		User kubeconfigUser `yaml:"user"`
	} `yaml:"users"`
}

type kubeconfigCluster struct {
	Server     string `yaml:"server"`
	ServerName string `yaml:"tls-server-name"`
	Insecure   bool   `yaml:"insecure-skip-tls-verify"`
	CA         string `yaml:"certificate-authority"`
	CAData     string `yaml:"certificate-authority-data"`
	ProxyURL   string `yaml:"proxy-url"`
}

type kubeconfigUser struct {
	Token     string `yaml:"token"`
	TokenFile string `yaml:"tokenFile"`
	Cert      string `yaml:"client-certificate"`
	CertData  string `yaml:"client-certificate-data"`
	Key       string `yaml:"client-key"`
	KeyData   string `yaml:"client-key-data"`
	// Those that are not understood, so that they are refused and not passed over.
	Exec         any    `yaml:"exec"`
	AuthProvider any    `yaml:"auth-provider"`
	Username     string `yaml:"username"`
	As           string `yaml:"as"`
}

// readKubeconfig returns what the file's current context says. Paths in it are
// relative to the file.
func readKubeconfig(path string) (config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return config{}, err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return config{}, err
	}
	cluster, user, err := k.current()
	if err != nil {
		return config{}, err
	}
	switch {
	case user.Exec != nil, user.AuthProvider != nil, user.Username != "", user.As != "":
		return config{}, errors.New("the user has exec, auth-provider, username or as, which are not supported; use a client certificate, token or tokenFile")
	case cluster.ProxyURL != "":
		return config{}, errors.New("the cluster has proxy-url, which is not supported; set HTTPS_PROXY in the environment")
	}
	c := config{server: cluster.Server, serverName: cluster.ServerName, insecure: cluster.Insecure, token: user.Token}
	dir := filepath.Dir(path)
	if user.TokenFile != "" {
		c.tokenFile = relativeTo(dir, user.TokenFile)
	}
	for _, f := range []struct {
		to                *[]byte
		field, data, file string
	}{
		{&c.ca, "certificate-authority", cluster.CAData, cluster.CA},
		{&c.cert, "client-certificate", user.CertData, user.Cert},
		{&c.key, "client-key", user.KeyData, user.Key},
	} {
		switch {
		case f.data != "":
			*f.to, err = base64.StdEncoding.DecodeString(f.data)
		case f.file != "":
			*f.to, err = os.ReadFile(relativeTo(dir, f.file))
		}
		if err != nil {
			return config{}, fmt.Errorf("%s: %w", f.field, err)
		}
	}
	return c, nil
}

func (k kubeconfig) current() (kubeconfigCluster, kubeconfigUser, error) {
	fail := func(what, name string) (kubeconfigCluster, kubeconfigUser, error) {
		return kubeconfigCluster{}, kubeconfigUser{}, fmt.Errorf("it has no %s %q", what, name)
	}
	for _, context := range k.Contexts {
		if context.Name != k.CurrentContext {
			continue
		}
		for _, cluster := range k.Clusters {
			if cluster.Name != context.Context.Cluster {
				continue
			}
			for _, user := range k.Users {
				if user.Name == context.Context.User {
					return cluster.Cluster, user.User, nil
				}
			}
			return fail("user", context.Context.User)
		}
		return fail("cluster", context.Context.Cluster)
	}
	return fail("current context", k.CurrentContext)
}

func relativeTo(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
