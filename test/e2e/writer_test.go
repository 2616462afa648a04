package e2e

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// writeScript appends numbered lines to an open file, makes each durable and reads it back by the
// file's name. What fails is in its log. /proc/uptime is the node's clock.
const writeScript = `trap exit TERM
exec 3>>/data/FILE
i=0
while :; do
	i=$((i+1))
	read -r up rest </proc/uptime
	echo "$i $up" >&3 || echo "$up: line $i: write failed" >&2
	sync /data/FILE || echo "$up: line $i: sync failed" >&2
	[ "$(tail -n 1 /data/FILE)" = "$i $up" ] || echo "$up: line $i: read something else" >&2
	usleep 100000
done`

// writer is a pod that never stops writing.
type writer struct {
	s     *scene
	pod   string
	file  string // on the server
	lines int    // of the last check
}

// writer starts a pod on the node that writes to a file of its name on the claim's volume.
func (s *scene) writer(name, node, claim string) *writer {
	s.t.Helper()
	w := &writer{s: s, pod: name, file: path.Join(s.dir, s.volume(claim), name)}
	s.apply(podManifest, name, node, strings.ReplaceAll(writeScript, "FILE", name), claim)
	s.podReady(name)
	w.goesOn()
	return w
}

// written returns when each line was written, by the node's clock, in seconds. It fails for a line
// that is missing or not whole.
func (w *writer) written() []float64 {
	w.s.t.Helper()
	text := onServer(w.s.ctx, w.s.t, w.s.c, "cat "+w.file)
	var times []float64
	for line := range strings.Lines(text + "\n") {
		number, up, _ := strings.Cut(strings.TrimSpace(line), " ")
		at, err := strconv.ParseFloat(up, 64)
		if err != nil || number != strconv.Itoa(len(times)+1) {
			w.s.t.Fatalf("pod %s: line %d of %s is %q", w.pod, len(times)+1, w.file, line)
		}
		times = append(times, at)
	}
	return times
}

// goesOn waits until lines come that were not begun before.
func (w *writer) goesOn() {
	w.s.t.Helper()
	before := -1
	w.s.wait("pod "+w.pod+" to write", func(context.Context) error {
		out, err := w.s.c.Server().Output(w.s.ctx, "sh", "-c", "wc -l <"+w.file)
		if err != nil {
			return err
		}
		now, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			return err
		}
		if before < 0 {
			before = now
		}
		if now < before+3 {
			return fmt.Errorf("%s has %d lines, and had %d before", w.file, now, before)
		}
		return nil
	})
}

// check shows that the pod still writes, and that since the last check no line was missing or
// failed and none came later than the pause allows.
func (w *writer) check(pause time.Duration) {
	w.s.t.Helper()
	w.goesOn()
	if errors := w.s.kubectl("logs", w.pod); errors != "" {
		w.s.t.Errorf("pod %s had errors:\n%s", w.pod, errors)
	}
	times := w.written()
	longest := 0.0
	for i := max(1, w.lines); i < len(times); i++ {
		longest = max(longest, times[i]-times[i-1])
	}
	if longest > pause.Seconds() {
		w.s.t.Errorf("pod %s did not write for %.1f s, want %v at most", w.pod, longest, pause)
	}
	w.s.t.Logf("pod %s wrote %d lines, the longest pause was %.1f s", w.pod, len(times)-w.lines, longest)
	w.lines = len(times)
}

// hiccup is the longest pause of a writer whose server is well: what a busy machine may take.
const hiccup = 20 * time.Second
