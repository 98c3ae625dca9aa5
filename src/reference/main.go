// What Go, and dockerd written in it, make of what a client sends: the reference for our own reading.
//
// Reads one question a line, answers each with one line of JSON. Parts of a question are hex. The types are those of
// moby 20.10 (api/types/container, api/types/network, runconfig), the routes those of its api/server/router in the
// order in which cmd/dockerd registers them, and the router and the HTTP server are the real ones.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
)

// ---- bodies

type StrSlice []string

// UnmarshalJSON is that of api/types/strslice.
func (e *StrSlice) UnmarshalJSON(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	p := make([]string, 0, 1)
	if err := json.Unmarshal(b, &p); err != nil {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		p = append(p, s)
	}
	*e = p
	return nil
}

type HealthConfig struct {
	Test        []string      `json:",omitempty"`
	Interval    time.Duration `json:",omitempty"`
	Timeout     time.Duration `json:",omitempty"`
	StartPeriod time.Duration `json:",omitempty"`
	Retries     int           `json:",omitempty"`
}

type Config struct {
	Hostname, Domainname, User              string
	AttachStdin, AttachStdout, AttachStderr bool
	ExposedPorts                            map[string]struct{} `json:",omitempty"`
	Tty, OpenStdin, StdinOnce               bool
	Env                                     []string
	Cmd                                     StrSlice
	Healthcheck                             *HealthConfig `json:",omitempty"`
	ArgsEscaped                             bool          `json:",omitempty"`
	Image                                   string
	Volumes                                 map[string]struct{}
	WorkingDir                              string
	Entrypoint                              StrSlice
	NetworkDisabled                         bool   `json:",omitempty"`
	MacAddress                              string `json:",omitempty"`
	OnBuild                                 []string
	Labels                                  map[string]string
	StopSignal                              string   `json:",omitempty"`
	StopTimeout                             *int     `json:",omitempty"`
	Shell                                   StrSlice `json:",omitempty"`
}

type WeightDevice struct {
	Path   string
	Weight uint16
}

type ThrottleDevice struct {
	Path string
	Rate uint64
}

type DeviceMapping struct{ PathOnHost, PathInContainer, CgroupPermissions string }

type DeviceRequest struct {
	Driver       string
	Count        int
	DeviceIDs    []string
	Capabilities [][]string
	Options      map[string]string
}

type Ulimit struct {
	Name       string
	Hard, Soft int64
}

type Resources struct {
	CPUShares                                                    int64 `json:"CpuShares"`
	Memory                                                       int64
	NanoCPUs                                                     int64 `json:"NanoCpus"`
	CgroupParent                                                 string
	BlkioWeight                                                  uint16
	BlkioWeightDevice                                            []*WeightDevice
	BlkioDeviceReadBps, BlkioDeviceWriteBps                      []*ThrottleDevice
	BlkioDeviceReadIOps, BlkioDeviceWriteIOps                    []*ThrottleDevice
	CPUPeriod                                                    int64 `json:"CpuPeriod"`
	CPUQuota                                                     int64 `json:"CpuQuota"`
	CPURealtimePeriod                                            int64 `json:"CpuRealtimePeriod"`
	CPURealtimeRuntime                                           int64 `json:"CpuRealtimeRuntime"`
	CpusetCpus, CpusetMems                                       string
	Devices                                                      []DeviceMapping
	DeviceCgroupRules                                            []string
	DeviceRequests                                               []DeviceRequest
	KernelMemory, KernelMemoryTCP, MemoryReservation, MemorySwap int64
	MemorySwappiness                                             *int64
	OomKillDisable                                               *bool
	PidsLimit                                                    *int64
	Ulimits                                                      []*Ulimit
	CPUCount                                                     int64 `json:"CpuCount"`
	CPUPercent                                                   int64 `json:"CpuPercent"`
	IOMaximumIOps, IOMaximumBandwidth                            uint64
}

type LogConfig struct {
	Type   string
	Config map[string]string
}

type RestartPolicy struct {
	Name              string
	MaximumRetryCount int
}

type PortBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

type Mount struct {
	Type        string `json:",omitempty"`
	Source      string `json:",omitempty"`
	Target      string `json:",omitempty"`
	ReadOnly    bool   `json:",omitempty"`
	Consistency string `json:",omitempty"`
	BindOptions *struct {
		Propagation  string `json:",omitempty"`
		NonRecursive bool   `json:",omitempty"`
	} `json:",omitempty"`
	VolumeOptions *struct {
		NoCopy       bool              `json:",omitempty"`
		Labels       map[string]string `json:",omitempty"`
		DriverConfig *struct {
			Name    string            `json:",omitempty"`
			Options map[string]string `json:",omitempty"`
		} `json:",omitempty"`
	} `json:",omitempty"`
	TmpfsOptions *struct {
		SizeBytes int64       `json:",omitempty"`
		Mode      os.FileMode `json:",omitempty"`
	} `json:",omitempty"`
}

type HostConfig struct {
	Binds                                       []string
	ContainerIDFile                             string
	LogConfig                                   LogConfig
	NetworkMode                                 string
	PortBindings                                map[string][]PortBinding
	RestartPolicy                               RestartPolicy
	AutoRemove                                  bool
	VolumeDriver                                string
	VolumesFrom                                 []string
	CapAdd, CapDrop                             StrSlice
	CgroupnsMode                                string
	DNS                                         []string `json:"Dns"`
	DNSOptions                                  []string `json:"DnsOptions"`
	DNSSearch                                   []string `json:"DnsSearch"`
	ExtraHosts, GroupAdd                        []string
	IpcMode, Cgroup                             string
	Links                                       []string
	OomScoreAdj                                 int
	PidMode                                     string
	Privileged, PublishAllPorts, ReadonlyRootfs bool
	SecurityOpt                                 []string
	StorageOpt                                  map[string]string `json:",omitempty"`
	Tmpfs                                       map[string]string `json:",omitempty"`
	UTSMode, UsernsMode                         string
	ShmSize                                     int64
	Sysctls                                     map[string]string `json:",omitempty"`
	Runtime                                     string            `json:",omitempty"`
	ConsoleSize                                 [2]uint
	Isolation                                   string
	Resources
	Mounts                     []Mount `json:",omitempty"`
	MaskedPaths, ReadonlyPaths []string
	Init                       *bool `json:",omitempty"`
}

type EndpointSettings struct {
	IPAMConfig *struct {
		IPv4Address  string   `json:",omitempty"`
		IPv6Address  string   `json:",omitempty"`
		LinkLocalIPs []string `json:",omitempty"`
	}
	Links, Aliases                            []string
	NetworkID, EndpointID, Gateway, IPAddress string
	IPPrefixLen                               int
	IPv6Gateway, GlobalIPv6Address            string
	GlobalIPv6PrefixLen                       int
	MacAddress                                string
	DriverOpts                                map[string]string
}

type NetworkingConfig struct {
	EndpointsConfig map[string]*EndpointSettings
}

type ContainerConfigWrapper struct {
	*Config
	InnerHostConfig  *HostConfig       `json:"HostConfig,omitempty"`
	Cpuset           string            `json:",omitempty"`
	NetworkingConfig *NetworkingConfig `json:"NetworkingConfig,omitempty"`
	*HostConfig
}

// hostConfig is runconfig's getHostConfig, without the name for a blank network mode.
func (w *ContainerConfigWrapper) hostConfig() *HostConfig {
	hc := w.HostConfig
	if hc == nil && w.InnerHostConfig != nil {
		hc = w.InnerHostConfig
	} else if w.InnerHostConfig != nil {
		if hc.Memory != 0 && w.InnerHostConfig.Memory == 0 {
			w.InnerHostConfig.Memory = hc.Memory
		}
		if hc.MemorySwap != 0 && w.InnerHostConfig.MemorySwap == 0 {
			w.InnerHostConfig.MemorySwap = hc.MemorySwap
		}
		if hc.CPUShares != 0 && w.InnerHostConfig.CPUShares == 0 {
			w.InnerHostConfig.CPUShares = hc.CPUShares
		}
		if hc.CpusetCpus != "" && w.InnerHostConfig.CpusetCpus == "" {
			w.InnerHostConfig.CpusetCpus = hc.CpusetCpus
		}
		if hc.VolumeDriver != "" && w.InnerHostConfig.VolumeDriver == "" {
			w.InnerHostConfig.VolumeDriver = hc.VolumeDriver
		}
		hc = w.InnerHostConfig
	}
	if hc != nil && w.Cpuset != "" && hc.CpusetCpus == "" {
		hc.CpusetCpus = w.Cpuset
	}
	if hc == nil {
		// daemon.containerCreate
		hc = &HostConfig{}
	}
	return hc
}

type created struct {
	Config    Config
	Host      HostConfig
	Endpoints map[string]*EndpointSettings
}

func decodeCreate(body []byte) (created, error) {
	var w ContainerConfigWrapper
	var c created
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&w); err != nil {
		return c, err
	}
	if w.Config != nil {
		c.Config = *w.Config
	}
	c.Host = *w.hostConfig()
	if w.NetworkingConfig != nil {
		c.Endpoints = w.NetworkingConfig.EndpointsConfig
	}
	return c, nil
}

type meaning struct {
	Error    string
	Env      []string
	Mode     string
	Networks map[string][]string
	Labels   map[string]string
	Runtime  string
	Ports    bool
}

// create: what a create body means to dockerd.
func create(parts [][]byte) any {
	c, err := decodeCreate(parts[0])
	if err != nil {
		return meaning{Error: err.Error()}
	}
	networks := map[string][]string{}
	for name, endpoint := range c.Endpoints {
		networks[name] = []string{}
		if endpoint != nil {
			networks[name] = append(networks[name], endpoint.Aliases...)
		}
	}
	env := append([]string{}, c.Config.Env...)
	ports := len(c.Host.PortBindings) > 0 || c.Host.PublishAllPorts
	return meaning{Env: env, Mode: c.Host.NetworkMode, Networks: networks, Labels: c.Config.Labels, Runtime: c.Host.Runtime, Ports: ports}
}

// edit: whether the second body is the first without its network, with the runtime that is named, and with nothing else
// changed.
func edit(parts [][]byte) any {
	before, err := decodeCreate(parts[0])
	if err != nil {
		return "before: " + err.Error()
	}
	after, err := decodeCreate(parts[1])
	if err != nil {
		return "after: " + err.Error()
	}
	if after.Host.NetworkMode != "none" {
		return "the network mode is " + after.Host.NetworkMode
	}
	if len(after.Endpoints) > 0 {
		return fmt.Sprintf("%d endpoints are left", len(after.Endpoints))
	}
	before.Host.NetworkMode, before.Host.Runtime = "none", string(parts[2])
	before.Endpoints, after.Endpoints = nil, nil
	if !reflect.DeepEqual(before, after) {
		one, _ := json.Marshal(before)
		two, _ := json.Marshal(after)
		return fmt.Sprintf("before %s, after %s", one, two)
	}
	return "same"
}

// legacy: the names of all members that dockerd takes for those of a host configuration where there is none.
func legacy([][]byte) any {
	var names []string
	var of func(reflect.Type)
	of = func(t reflect.Type) {
		for i := 0; i < t.NumField(); i++ {
			field := t.Field(i)
			if field.Anonymous {
				of(field.Type)
				continue
			}
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "" {
				name = field.Name
			}
			names = append(names, name)
		}
	}
	of(reflect.TypeOf(HostConfig{}))
	return names
}

// connect: the container that a connect or disconnect is about.
func connect(parts [][]byte) any {
	var body struct {
		Container      string
		EndpointConfig *EndpointSettings `json:",omitempty"`
	}
	if err := json.NewDecoder(bytes.NewReader(parts[0])).Decode(&body); err != nil {
		return map[string]string{"Error": err.Error()}
	}
	return map[string]string{"Container": body.Container}
}

// document: how long the first document is; -1 if Go refuses it.
func document(parts [][]byte) any {
	decoder := json.NewDecoder(bytes.NewReader(parts[0]))
	var document json.RawMessage
	if err := decoder.Decode(&document); err != nil {
		return -1
	}
	return decoder.InputOffset()
}

// text: what Go reads from a string.
func text(parts [][]byte) any {
	var text string
	if err := json.Unmarshal(parts[0], &text); err != nil {
		return nil
	}
	return text
}

// ---- routes

var routes = []string{
	"GET /containers/{name:.*}/checkpoints", "POST /containers/{name:.*}/checkpoints",
	"DELETE /containers/{name}/checkpoints/{checkpoint}",
	"HEAD /containers/{name:.*}/archive",
	"GET /containers/json", "GET /containers/{name:.*}/export", "GET /containers/{name:.*}/changes",
	"GET /containers/{name:.*}/json", "GET /containers/{name:.*}/top", "GET /containers/{name:.*}/logs",
	"GET /containers/{name:.*}/stats", "GET /containers/{name:.*}/attach/ws", "GET /exec/{id:.*}/json",
	"GET /containers/{name:.*}/archive",
	"POST /containers/create", "POST /containers/{name:.*}/kill", "POST /containers/{name:.*}/pause",
	"POST /containers/{name:.*}/unpause", "POST /containers/{name:.*}/restart", "POST /containers/{name:.*}/start",
	"POST /containers/{name:.*}/stop", "POST /containers/{name:.*}/wait", "POST /containers/{name:.*}/resize",
	"POST /containers/{name:.*}/attach", "POST /containers/{name:.*}/copy", "POST /containers/{name:.*}/exec",
	"POST /exec/{name:.*}/start", "POST /exec/{name:.*}/resize", "POST /containers/{name:.*}/rename",
	"POST /containers/{name:.*}/update", "POST /containers/prune", "POST /commit",
	"PUT /containers/{name:.*}/archive", "DELETE /containers/{name:.*}",
	"GET /images/json", "GET /images/search", "GET /images/get", "GET /images/{name:.*}/get",
	"GET /images/{name:.*}/history", "GET /images/{name:.*}/json", "POST /images/load", "POST /images/create",
	"POST /images/{name:.*}/push", "POST /images/{name:.*}/tag", "POST /images/prune", "DELETE /images/{name:.*}",
	"OPTIONS /{anyroute:.*}", "GET /_ping", "HEAD /_ping", "GET /events", "GET /info", "GET /version",
	"GET /system/df", "POST /auth",
	"GET /volumes", "GET /volumes/{name:.*}", "POST /volumes/create", "POST /volumes/prune",
	"DELETE /volumes/{name:.*}",
	"POST /build", "POST /build/prune", "POST /build/cancel", "POST /session",
	"POST /swarm/init", "POST /swarm/join", "POST /swarm/leave", "GET /swarm", "GET /services", "GET /nodes/{id}",
	"GET /plugins", "GET /plugins/{name:.*}/json", "GET /plugins/privileges", "DELETE /plugins/{name:.*}",
	"GET /distribution/{name:.*}/json", "POST /grpc",
	"GET /networks", "GET /networks/", "GET /networks/{id:.+}", "POST /networks/create",
	"POST /networks/{id:.*}/connect", "POST /networks/{id:.*}/disconnect", "POST /networks/prune",
	"DELETE /networks/{id:.*}",
}

// The answer to the request that is being routed.
type routed struct {
	Route   string
	Version *string
	// Hex.
	Name string
	// The query's, if Go reads the query.
	Query *string
	// Whether the version is before 1.24, by moby api/types/versions.
	Old bool
}

var found routed

// newMux is api/server's createMux.
func newMux() *mux.Router {
	m := mux.NewRouter()
	for _, route := range routes {
		method, path, _ := strings.Cut(route, " ")
		route := route
		f := func(_ http.ResponseWriter, r *http.Request) {
			vars := mux.Vars(r)
			found.Route = route
			if version, ok := vars["version"]; ok {
				found.Version = &version
				found.Old = compare(version, "1.24") < 0
			}
			found.Name = hex.EncodeToString([]byte(vars["name"] + vars["id"]))
			if err := r.ParseForm(); err == nil {
				name := r.Form.Get("name")
				found.Query = &name
			}
		}
		m.Path("/v{version:[0-9.]+}" + path).Methods(method).HandlerFunc(f)
		m.Path(path).Methods(method).HandlerFunc(f)
	}
	none := func(http.ResponseWriter, *http.Request) {}
	m.HandleFunc("/v{version:[0-9.]+}/{path:.*}", none)
	m.NotFoundHandler = http.HandlerFunc(none)
	m.MethodNotAllowedHandler = http.HandlerFunc(none)
	return m
}

// compare is that of moby api/types/versions.
func compare(one, two string) int {
	left, right := strings.Split(one, "."), strings.Split(two, ".")
	for i := 0; i < len(left) || i < len(right); i++ {
		var a, b int
		if i < len(left) {
			a, _ = strconv.Atoi(left[i])
		}
		if i < len(right) {
			b, _ = strconv.Atoi(right[i])
		}
		if a != b {
			if a > b {
				return 1
			}
			return -1
		}
	}
	return 0
}

var router = newMux()

// target: where dockerd routes a method and a target; an empty route where it routes nowhere.
func target(parts [][]byte) any {
	found = routed{}
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: d\r\n\r\n", parts[0], parts[1])
	request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
	if err != nil || request.RequestURI != string(parts[1]) {
		return found
	}
	router.ServeHTTP(discard{http.Header{}}, request)
	return found
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// ---- streams

// wire is a connection on which everything has arrived already, the FIN included.
type wire struct {
	in       *bytes.Reader
	out      bytes.Buffer
	requests []seen
	closed   chan struct{}
}

type seen struct {
	Method string
	// Hex, as is the body.
	Target, Body string
	Error        string
	Close        bool
}

func (w *wire) Read(b []byte) (int, error)  { return w.in.Read(b) }
func (w *wire) Write(b []byte) (int, error) { return w.out.Write(b) }
func (w *wire) Close() error {
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	return nil
}
func (w *wire) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (w *wire) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

type wires chan net.Conn

func (w wires) Accept() (net.Conn, error) {
	conn, ok := <-w
	if !ok {
		return nil, errors.New("closed")
	}
	return conn, nil
}
func (w wires) Close() error   { return nil }
func (w wires) Addr() net.Addr { return &net.UnixAddr{} }

type key struct{}

var accepting = make(wires)

func serve() {
	server := &http.Server{
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, key{}, c)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn := r.Context().Value(key{}).(*wire)
			body, err := io.ReadAll(r.Body)
			one := seen{Method: r.Method, Target: hex.EncodeToString([]byte(r.RequestURI)), Close: r.Close}
			one.Body = hex.EncodeToString(body)
			if err != nil {
				one.Error = err.Error()
			}
			conn.requests = append(conn.requests, one)
		}),
	}
	_ = server.Serve(accepting)
}

// stream: which requests Go's server reads from some bytes that end with a FIN, and the status of each answer.
func stream(parts [][]byte) any {
	conn := &wire{in: bytes.NewReader(parts[0]), closed: make(chan struct{})}
	accepting <- conn
	<-conn.closed
	var answers []int
	reader := bufio.NewReader(&conn.out)
	for i := 0; ; i++ {
		method := "GET"
		if i < len(conn.requests) {
			method = conn.requests[i].Method
		}
		reply, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			break
		}
		_, _ = io.Copy(io.Discard, reply.Body)
		if reply.StatusCode == 100 {
			i--
			continue
		}
		answers = append(answers, reply.StatusCode)
	}
	return map[string]any{"Requests": conn.requests, "Answers": answers}
}

func main() {
	questions := map[string]func([][]byte) any{
		"create": create, "edit": edit, "legacy": legacy, "connect": connect, "document": document, "text": text,
		"target": target, "stream": stream,
	}
	go serve()
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		var parts [][]byte
		for _, word := range words[1:] {
			part, err := hex.DecodeString(word)
			if err != nil {
				log.Fatal(err)
			}
			parts = append(parts, part)
		}
		answer, err := json.Marshal(questions[words[0]](parts))
		if err != nil {
			log.Fatal(err)
		}
		out.Write(answer)
		out.WriteByte('\n')
		out.Flush()
	}
}
