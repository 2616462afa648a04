package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

const agentPackage = "github.com/nfs-csi/nfs-csi-driver/test/lab/agent"

// buildAgent compiles the agent into the cache and returns its path. The path holds the binary's
// digest: a guest that runs keeps its own.
func buildAgent(ctx context.Context) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return "", fmt.Errorf("build the agent: %w", err)
	}
	defer os.RemoveAll(tmp)
	built := filepath.Join(tmp, "agent")
	if err := GoBuild(ctx, built, agentPackage); err != nil {
		return "", err
	}
	data, err := os.ReadFile(built)
	if err != nil {
		return "", fmt.Errorf("build the agent: %w", err)
	}
	path := filepath.Join(cache, fmt.Sprintf("agent-%x", sha256.Sum256(data))[:len("agent-")+16])
	if err := os.Rename(built, path); err != nil {
		return "", fmt.Errorf("build the agent: %w", err)
	}
	return path, removeOldAgents(cache, time.Now().Add(-24*time.Hour))
}

// removeOldAgents removes the agents of earlier sources, made before the given
// time: guests that run no longer than that keep theirs.
func removeOldAgents(cache string, before time.Time) error {
	agents, err := filepath.Glob(filepath.Join(cache, "agent-*"))
	if err != nil {
		return err
	}
	for _, path := range agents {
		info, err := os.Stat(path)
		if err == nil && info.ModTime().Before(before) {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove an old agent: %w", err)
		}
	}
	return nil
}

// GoBuild compiles a package of this module into a static binary, for use in a guest.
func GoBuild(ctx context.Context, output, pkg string) error {
	return goTool(ctx, "build", "-o", output, pkg)
}

// GoTestBuild compiles the tests of a package of this module into a static binary, for use in a
// guest.
func GoTestBuild(ctx context.Context, output, pkg string) error {
	return goTool(ctx, "test", "-c", "-o", output, pkg)
}

func goTool(ctx context.Context, args ...string) error {
	dir, err := sourceDir()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return nil
}

// sourceDir is where the lab's own source is, whatever the working directory.
func sourceDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("the lab does not know its source directory")
	}
	dir := filepath.Dir(file)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("the lab compiles its agent and needs its source (do not build it with -trimpath): %w", err)
	}
	return dir, nil
}

func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil { // no HOME
		base = "/var/cache"
	}
	dir := filepath.Join(base, "nfs-csi-lab")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the lab's cache: %w", err)
	}
	return dir, nil
}
