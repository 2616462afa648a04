package story

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStory(t *testing.T) {
	var out strings.Builder
	s := &Story{Out: &out}
	s.Chapter("Begin")
	s.Say("There are %d nodes.", 2)
	failed := errors.New("exit status 1")
	got, err := s.Run("$", []string{"kubectl", "get", "pods"}, func() (string, error) { return "a  \n\nb", failed })
	if got != "a  \n\nb" || !errors.Is(err, failed) {
		t.Errorf("Run returned %q, %v", got, err)
	}
	s.Say("It failed.")
	s.Chapter("End")
	want := `
1. Begin
   There are 2 nodes.

   $ kubectl get pods
   a

   b

   It failed.

2. End
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("the story (-want +got):\n%s", diff)
	}
}

func TestCommand(t *testing.T) {
	long := strings.Repeat("x", 60)
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"plain", []string{"ls", "-ld", "/srv/data"}, "ls -ld /srv/data"},
		{"script", []string{"sh", "-c", `echo "it's" >/data/f`}, `sh -c 'echo "it'\''s" >/data/f'`},
		{"brackets", []string{"--set", "classes[0].name=nfs"}, "--set 'classes[0].name=nfs'"},
		{"empty", []string{"echo", ""}, "echo ''"},
		{"long", []string{"helm", "--a=" + long, "--b=" + long}, "helm --a=" + long + " \\\n       --b=" + long},
		{"value", []string{"helm", "--a=" + long, "--b", long}, "helm --a=" + long + " \\\n       --b " + long},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Command(tt.args)
			if got != tt.want {
				t.Errorf("Command(%q)\n got %s\nwant %s", tt.args, got, tt.want)
			}
			// A shell reads the same words.
			words, err := exec.Command("sh", "-c", "printf '%s\\0' "+got).Output()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Join(tt.args, "\x00")+"\x00", string(words)); diff != "" {
				t.Errorf("a shell reads (-want +got):\n%s", diff)
			}
		})
	}
}
