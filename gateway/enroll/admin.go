package enroll

import (
	"errors"
	"fmt"

	"dstack.host/gateway/prpc"
	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
)

// Messages of the admin's calls (dstack 0.6 gateway/rpc/proto/gateway_rpc.proto).
type (
	instanceRequest struct {
		ID string `json:"instance_id" prpc:"1"`
	}
	removeResponse struct {
		Existed bool `json:"record_existed" prpc:"1"`
		Removed bool `json:"removed_locally" prpc:"2"`
	}
	setPolicyRequest struct {
		ID     string      `json:"instance_id" prpc:"1"`
		Policy *portPolicy `json:"policy" prpc:"2"`
	}
	policyResponse struct {
		Effective *portPolicy `json:"effective" prpc:"1"`
		Source    string      `json:"source" prpc:"2"`
		Reported  *portPolicy `json:"instance_reported" prpc:"3"`
		Override  *portPolicy `json:"admin_override" prpc:"4"`
	}
)

// Admin returns dstack's admin calls that concern single instances: RemoveCvm, and Set-, Clear- and GetInstancePortPolicy. They are for a listener
// that strangers can't reach: nobody is asked who he is.
func Admin(r *registry.Registry) *prpc.Service {
	a := admin{r}
	return &prpc.Service{
		Trim: "Admin.",
		Methods: map[string]func(*prpc.Call) (any, error){
			"RemoveCvm": a.remove, "SetInstancePortPolicy": a.setPolicy, "ClearInstancePortPolicy": a.clearPolicy, "GetInstancePortPolicy": a.policy,
		},
		Status: func(err error) int {
			status, _ := classify(err)
			return status
		},
	}
}

type admin struct{ registry *registry.Registry }

// remove makes an instance unknown. Doing it again tells that there is none, and is no error.
func (a admin) remove(c *prpc.Call) (any, error) {
	id, err := readInstance(c)
	if err != nil {
		return nil, err
	}
	err = a.registry.Remove(c.Request.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return new(removeResponse), nil
	}
	return &removeResponse{Existed: err == nil, Removed: err == nil}, err
}

func (a admin) setPolicy(c *prpc.Call) (any, error) {
	var m setPolicyRequest
	if err := c.Read(&m, maxBody, 0); err != nil {
		return nil, refuse(reasonRequest, err)
	}
	id, err := parseInstance(m.ID)
	if err != nil {
		return nil, err
	}
	policy, err := m.Policy.policy()
	if err == nil && policy == nil {
		err = errors.New("no policy: ClearInstancePortPolicy takes an override back")
	}
	if err != nil {
		return nil, refuse(reasonRequest, err)
	}
	return new(prpc.Empty), unknown(a.registry.SetOverride(c.Request.Context(), id, policy))
}

func (a admin) clearPolicy(c *prpc.Call) (any, error) {
	id, err := readInstance(c)
	if err != nil {
		return nil, err
	}
	return new(prpc.Empty), unknown(a.registry.SetOverride(c.Request.Context(), id, nil))
}

func (a admin) policy(c *prpc.Call) (any, error) {
	id, err := readInstance(c)
	if err != nil {
		return nil, err
	}
	inst := a.registry.Snapshot().Instance(id)
	if inst == nil {
		return nil, unknown(fmt.Errorf("instance %s: %w", id, store.ErrNotFound))
	}
	answer := &policyResponse{Effective: wirePolicy(inst.Policy()), Source: "none", Reported: wirePolicy(inst.Ports), Override: wirePolicy(inst.Override)}
	switch {
	case inst.Override != nil:
		answer.Source = "admin"
	case inst.Ports != nil:
		answer.Source = "instance"
	}
	return answer, nil
}

func readInstance(c *prpc.Call) (registry.InstanceID, error) {
	var m instanceRequest
	if err := c.Read(&m, maxBody, 0); err != nil {
		return registry.InstanceID{}, refuse(reasonRequest, err)
	}
	return parseInstance(m.ID)
}

func parseInstance(text string) (registry.InstanceID, error) {
	id, err := registry.ParseInstanceID(text)
	if err != nil {
		return id, refuse(reasonRequest, fmt.Errorf("instance_id: %w", err))
	}
	return id, nil
}

// unknown makes an instance that is not registered the caller's fault.
func unknown(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return refuse(reasonRequest, err)
	}
	return err
}

func wirePolicy(p *registry.PortPolicy) *portPolicy {
	if p == nil {
		return nil
	}
	m := &portPolicy{Restrict: p.Restrict}
	for _, port := range p.Ports {
		m.Ports = append(m.Ports, portAttrs{uint32(port.Port), port.Proxy})
	}
	return m
}
