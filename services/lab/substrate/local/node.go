package local

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// node is one RabbitMQ node of ours, across its restarts.
type node struct {
	name   string // warren0-4711@localhost
	short  string // node0, the folder
	dir    string // configuration, data and logs
	home   string // shared by the nodes: the Erlang cookie
	folder *folder

	amqp, management, distribution, epmd int // ports on loopback

	child     *child
	container string // of the current life
	lives     int
	logged    int64 // size of the log when the current life began
	paused    bool
}

// settings are RabbitMQ's environment variables for this node.
func (n *node) settings() []string {
	return []string{
		"HOME=" + n.home, // .erlang.cookie
		"LANG=C.UTF-8",
		"RABBITMQ_NODENAME=" + n.name,
		"RABBITMQ_MNESIA_BASE=" + filepath.Join(n.dir, "data"),
		"RABBITMQ_LOG_BASE=" + filepath.Join(n.dir, "log"),
		"RABBITMQ_LOGS=" + n.log(),
		"RABBITMQ_CONFIG_FILE=" + filepath.Join(n.dir, "rabbitmq.conf"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + filepath.Join(n.dir, "advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + filepath.Join(n.dir, "enabled_plugins"),
		"RABBITMQ_CONF_ENV_FILE=/dev/null", // not the system broker's
		fmt.Sprintf("RABBITMQ_DIST_PORT=%d", n.distribution),
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
		fmt.Sprintf("ERL_EPMD_PORT=%d", n.epmd),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_CRASH_DUMP=" + filepath.Join(n.dir, "log", "erl_crash.dump"),
		// Makes the start script exec the VM instead of standing beside it: the
		// process that we start is the one that SIGKILL must hit.
		"RUNNING_UNDER_SYSTEMD=true",
	}
}

func (n *node) env() []string { return append(n.settings(), "PATH="+os.Getenv("PATH")) }

func (n *node) log() string { return filepath.Join(n.dir, "log", "rabbit.log") }

func (n *node) logSize() int64 {
	info, err := os.Stat(n.log())
	if err != nil {
		return 0 // it has not lived yet
	}
	return info.Size()
}

// started is nil once the node has said in its log that this life of it is up.
func (n *node) started() error {
	log, err := os.ReadFile(n.log())
	if err != nil {
		return err
	}
	if !bytes.Contains(log[min(n.logged, int64(len(log))):], []byte("Server startup complete")) {
		return fmt.Errorf("%s has not said %q", n.log(), "Server startup complete")
	}
	return nil
}

// advanced is what rabbitmq.conf has no words for. A dead letter that its queue
// did not confirm is retried after 180 s by default. A quorum queue counts its
// messages, and the management API samples the counts, every 5 s by default,
// which is too late to say that a queue is quiet.
const advanced = `[
  {rabbit, [{dead_letter_worker_publisher_confirm_timeout, 3000}, {quorum_tick_interval, 500}]},
  {rabbitmq_management, [{sample_retention_policies, [{global, [{60, 1}]}, {basic, [{60, 1}]}, {detailed, [{10, 1}]}]}]}
].
`

// write puts the node's configuration into its folder.
func (n *node) write(all []*node, adminPassword string) error {
	var conf strings.Builder
	set := func(key string, value any) { fmt.Fprintf(&conf, "%s = %v\n", key, value) }
	set("listeners.tcp.1", fmt.Sprintf("127.0.0.1:%d", n.amqp))
	set("management.tcp.ip", "127.0.0.1")
	set("management.tcp.port", n.management)
	set("default_user", adminUser) // in place of guest
	set("default_pass", adminPassword)
	set("collect_statistics_interval", 500) // see advanced
	set("disk_free_limit.absolute", "50MB")
	set("vm_memory_high_watermark.absolute", "1GB")
	set("log.file.level", "info")
	if len(all) > 1 {
		set("cluster_formation.peer_discovery_backend", "classic_config")
		for i, peer := range all {
			set(fmt.Sprintf("cluster_formation.classic_config.nodes.%d", i+1), peer.name)
		}
	}
	files := map[string]string{
		"rabbitmq.conf":   conf.String(),
		"advanced.config": advanced,
		"enabled_plugins": "[rabbitmq_management].\n",
	}
	for _, dir := range []string{"data", "log"} {
		if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o700); err != nil {
			return fmt.Errorf("node folder: %w", err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("node folder: %w", err)
		}
	}
	return nil
}

// lastWords finds the line of the node's log or output that says why it ended.
func (n *node) lastWords() string {
	var last, port string
	for _, file := range []string{filepath.Join(n.dir, "log", "out.log"), n.log()} {
		for _, line := range lines(file) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, `{"init terminating in`) { // 3.10.8: the whole reason
				return line
			}
			if strings.Contains(line, "eaddrinuse") {
				port = line
			}
			for _, word := range []string{"[error]", "ERROR", "Error", "error:"} {
				// "[error] <0.1.0> " with nothing behind it is a banner's frame.
				if strings.Contains(line, word) && !strings.HasSuffix(line, "> ") && !strings.HasSuffix(line, ">") {
					last = line
				}
			}
		}
	}
	return cmp.Or(port, last, "see "+n.log())
}
