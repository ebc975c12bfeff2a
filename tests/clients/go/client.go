// Takes an app through its life: create, wait, watch, resume, read an error's details, delete.
//
// Usage: client HOST:PORT APP_ID ENTRYPOINT. Prints one JSON line per step.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	catalogv1 "appsupervisor.dev/gen/appsupervisor/catalog/v1"
)

// client is what a program does with the catalog.
type client struct {
	apps       catalogv1.AppCatalogClient
	operations longrunningpb.OperationsClient
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: client HOST:PORT APP_ID ENTRYPOINT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(address, id, entrypoint string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	c := client{catalogv1.NewAppCatalogClient(conn), longrunningpb.NewOperationsClient(conn)}
	name := "apps/" + id

	app, err := c.wait(ctx)(c.apps.CreateApp(ctx, &catalogv1.CreateAppRequest{
		AppId:     id,
		App:       &catalogv1.App{Entrypoint: entrypoint, Labels: map[string]string{"client": "go"}},
		RequestId: "create-" + id,
	}))
	if err != nil {
		return err
	}
	report(step{Step: "created", Name: app.GetName(), State: app.GetState().String()})

	var synced *catalogv1.WatchAppsResponse
	err = c.watch(ctx, name, "", func(message *catalogv1.WatchAppsResponse) bool {
		switch message.GetType() {
		case catalogv1.WatchAppsResponse_UPSERT:
			report(step{Step: "watched", Name: message.GetApp().GetName()})
		case catalogv1.WatchAppsResponse_SYNCED:
			synced = message
		}
		return synced == nil
	})
	if err != nil {
		return err
	}

	_, err = c.wait(ctx)(c.apps.UpdateApp(ctx, &catalogv1.UpdateAppRequest{
		App:        &catalogv1.App{Name: name, DisplayName: "Changed"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
	}))
	if err != nil {
		return err
	}
	err = c.watch(ctx, name, synced.GetResumeToken(), func(message *catalogv1.WatchAppsResponse) bool {
		changed := message.GetApp()
		if message.GetRevision() > synced.GetRevision() && changed.GetDisplayName() != "" {
			report(step{Step: "resumed", Name: changed.GetName(), DisplayName: changed.GetDisplayName()})
			return false
		}
		return true
	})
	if err != nil {
		return err
	}

	_, err = c.apps.CreateApp(ctx, &catalogv1.CreateAppRequest{
		AppId: "Not An Id",
		App:   &catalogv1.App{Entrypoint: "nonsense"},
	})
	if err := refused("refused", err); err != nil {
		return err
	}

	app, err = c.wait(ctx)(c.apps.DeleteApp(ctx, &catalogv1.DeleteAppRequest{
		Name:       name,
		DataPolicy: catalogv1.DeleteAppRequest_DROP,
	}))
	if err != nil {
		return err
	}
	report(step{Step: "deleted", Name: app.GetName()})
	_, err = c.apps.GetApp(ctx, &catalogv1.GetAppRequest{Name: name})
	return refused("gone", err)
}

// wait returns a function that waits for the operation a call has begun, and returns the app it ends with.
func (c client) wait(ctx context.Context) func(*longrunningpb.Operation, error) (*catalogv1.App, error) {
	return func(operation *longrunningpb.Operation, err error) (*catalogv1.App, error) {
		for err == nil && !operation.GetDone() {
			operation, err = c.operations.WaitOperation(ctx, &longrunningpb.WaitOperationRequest{
				Name:    operation.GetName(),
				Timeout: durationpb.New(10 * time.Second),
			})
		}
		if err != nil {
			return nil, err
		}
		if failure := operation.GetError(); failure != nil {
			return nil, status.ErrorProto(failure)
		}
		app := &catalogv1.App{}
		return app, operation.GetResponse().UnmarshalTo(app)
	}
}

// watch hands over what happens to one app, from the start or from exactly after a token, while more is asked for.
func (c client) watch(ctx context.Context, name, token string, more func(*catalogv1.WatchAppsResponse) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filter := fmt.Sprintf("name = %q", name)
	stream, err := c.apps.WatchApps(ctx, &catalogv1.WatchAppsRequest{Filter: filter, ResumeToken: token})
	for err == nil {
		var message *catalogv1.WatchAppsResponse
		if message, err = stream.Recv(); err == nil && !more(message) {
			return nil
		}
	}
	return err
}

// refused reports the details of an error.
func refused(name string, err error) error {
	if err == nil {
		return fmt.Errorf("%s: the call succeeded", name)
	}
	told := step{Step: name, Fields: &[]string{}}
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			told.Reason, told.Domain = detail.GetReason(), detail.GetDomain()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				*told.Fields = append(*told.Fields, violation.GetField())
			}
			sort.Strings(*told.Fields)
		}
	}
	report(told)
	return nil
}

// step is what a step has found.
type step struct {
	Step        string    `json:"step"`
	Name        string    `json:"name,omitempty"`
	State       string    `json:"state,omitempty"`
	DisplayName string    `json:"displayName,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	Domain      string    `json:"domain,omitempty"`
	Fields      *[]string `json:"fields,omitempty"`
}

func report(found step) {
	line, _ := json.Marshal(found)
	fmt.Println(string(line))
}
