package kube

import (
	"errors"
	"net/http"
	"time"

	"k8s.io/klog/v2"
)

// troubleInterval is how often a lasting failure is logged.
const troubleInterval = 10 * time.Minute

// trouble logs a failure that may last: when it begins, now and then while it
// lasts, and when it is over.
type trouble struct {
	logger  klog.Logger
	message string
	// rights is what to do when the API server refuses it.
	rights string
	logged time.Time // zero while all is well
}

func (t *trouble) failed(err error) {
	if !t.logged.IsZero() && time.Since(t.logged) < troubleInterval {
		t.logger.V(4).Info(t.message+", still", "err", err)
		return
	}
	t.logged = time.Now()
	status := new(StatusError)
	if errors.As(err, &status) && (status.Code == http.StatusForbidden || status.Code == http.StatusUnauthorized) {
		t.logger.Error(err, t.message+"; trying again", "advice", t.rights)
		return
	}
	t.logger.Info(t.message+"; trying again", "err", err)
}

func (t *trouble) over() {
	if !t.logged.IsZero() {
		t.logger.Info(t.message + ": over")
		t.logged = time.Time{}
	}
}
