"use strict";
// Shows what /ui/events tells. Text from the cluster becomes text nodes and nothing else.

(() => {
  const STALE = 40_000; // The stream tells something every ten seconds.
  const AGAIN = 3_000;
  const NEWS = 3; // Announced at a time.

  const byId = (id) => document.getElementById(id);

  /** Makes an element with properties and children; a string is text. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /** Writes text where it differs, so that what is selected stays. */
  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function mark(element, kind) {
    if (kind) element.dataset.kind = kind;
    else delete element.dataset.kind;
  }

  // ---- time ----

  /** How far the server's clock is ahead of this one, in ms. */
  let ahead = 0;

  const STEPS = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];

  function span(seconds) {
    const rest = Math.max(0, Math.round(seconds));
    const at = STEPS.findIndex(([, size]) => rest >= size);
    if (at < 0) return "0 s";
    const [unit, size] = STEPS[at];
    const whole = Math.floor(rest / size);
    const next = STEPS[at + 1];
    const part = next && whole < 10 ? Math.floor((rest - whole * size) / next[1]) : 0;
    return part ? `${whole} ${unit} ${part} ${next[0]}` : `${whole} ${unit}`;
  }

  function setTime(element, iso) {
    if (element.dateTime !== (iso ?? "")) {
      element.dateTime = iso ?? "";
      element.title = iso ? new Date(iso).toLocaleString() : "";
    }
    showTime(element);
  }

  function showTime(element) {
    const iso = element.dateTime;
    if (!iso) return write(element, "");
    const seconds = (Date.parse(iso) - Date.now() - ahead) / 1000;
    // Times have whole seconds, and the clocks of the cluster differ a little: so close ahead is now.
    write(element, seconds > 2 ? `in ${span(seconds)}` : `${span(Math.max(0, -seconds))} ago`);
  }

  // ---- rows ----

  const TROUBLE = {
    held: ["Held", "bad"],
    latched: ["Latched", "bad"],
    rollingBack: ["Rolling back", "move"],
    failing: ["Failing", "warn"],
  };
  const OUTCOME = {
    Succeeded: ["Succeeded", "good"],
    Failed: ["Failed", "bad"],
    InProgress: ["In progress", "move"],
    Superseded: ["Superseded", "calm"],
  };
  const EXPLAINED = {
    failing: "It is not given up yet: the policy's time is not over.",
    rollingBack: "The last good revision is being put back.",
  };

  const cell = (label, ...children) => make("td", { role: "cell", "data-label": label }, ...children);
  const whole = (...children) => make("td", { role: "cell", class: "whole" }, ...children);

  /** The cell that names the Deployment. */
  function subject() {
    const namespace = make("span", { class: "namespace" });
    const name = make("span");
    const element = make("th", { role: "rowheader", scope: "row" }, namespace, name);
    return { element, set: (row) => { write(namespace, row.namespace); write(name, row.name); } };
  }

  function badge() {
    const element = make("span", { class: "badge" });
    return { element, set: ([text, kind]) => { write(element, text); mark(element, kind); } };
  }

  const labelled = (label, ...children) => make("div", {}, make("span", { class: "label" }, label), ...children);
  const list = (lines) => make("ul", {}, ...lines.map((line) => make("li", { class: "mono" }, line)));

  function commandLine(command) {
    const line = make("div", { class: "command" }, make("code", {}, command));
    if (navigator.clipboard) {
      const button = make("button", { type: "button", "aria-label": `Copy: ${command}` }, "Copy");
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(command);
          write(button, "Copied");
          announce(["The command is copied"]);
        } catch {
          write(button, "Not permitted");
        }
        setTimeout(() => write(button, "Copy"), 2_000);
      });
      line.append(button);
    }
    return labelled("Look closer", line);
  }

  /** What opens: the words, and below them the facts. */
  function story(factsOf) {
    const words = make("span");
    const facts = make("div", { class: "facts" });
    const element = make("details", {}, make("summary", {}, words), facts);
    let known = "";
    return {
      element,
      set(row) {
        write(words, row.message || row.cause);
        const now = JSON.stringify(row);
        if (now === known) return;
        known = now;
        // What has the focus stays: the command is always the same and always last.
        const last = facts.lastChild ?? commandLine(row.command);
        const parts = factsOf(row);
        while (facts.firstChild && facts.firstChild !== last) facts.firstChild.remove();
        if (last.parentNode) last.before(...parts);
        else facts.append(...parts, last);
      },
    };
  }

  function troubleRow() {
    const [who, state, since, cause] = [subject(), badge(), make("time"), make("span")];
    const why = story((row) => {
      const facts = [];
      const explained = row.whyHeld ?? EXPLAINED[row.state];
      if (explained) facts.push(labelled(row.whyHeld ? "Not rolled back" : "What is done", explained));
      if (row.evidence.length) facts.push(labelled("Evidence", list(row.evidence)));
      if (row.images.length) facts.push(labelled("Images", list(row.images)));
      const numbers = [];
      if (row.generation !== null) numbers.push(`generation ${row.generation}`);
      if (row.phase) numbers.push(row.phase);
      if (row.pushedAt) numbers.push(`pushed ${new Date(row.pushedAt).toLocaleString()}`);
      if (numbers.length) facts.push(labelled("Rollout", numbers.join(", ")));
      return facts;
    });
    const element = make("tr", { role: "row" }, who.element, cell("State", state.element), cell("Since", since),
      cell("Cause", cause), whole(why.element));
    return {
      element,
      set(row) {
        who.set(row);
        state.set(TROUBLE[row.state] ?? [row.state, "bad"]);
        setTime(since, row.since);
        write(cause, row.cause);
        why.set(row);
      },
    };
  }

  const revision = (number) => (number === null ? "none" : String(number));

  function rollbackRow() {
    const [who, outcome, when, took, change] = [subject(), badge(), make("time"), make("span"), make("span")];
    const why = story((row) => {
      const facts = [];
      if (row.fromImages.length) facts.push(labelled("From", list(row.fromImages)));
      if (row.toImages.length) facts.push(labelled("Back to", list(row.toImages)));
      if (row.evidence.length) facts.push(labelled("Evidence", list(row.evidence)));
      if (row.pushedAt) facts.push(labelled("Pushed", new Date(row.pushedAt).toLocaleString()));
      return facts;
    });
    const words = make("strong", { class: "short" });
    why.element.firstChild.prepend(words, " ");
    const element = make("tr", { role: "row" }, who.element, cell("Outcome", outcome.element), cell("When", when),
      cell("To safety", took), cell("Revision", change), whole(why.element));
    return {
      element,
      set(row) {
        who.set(row);
        outcome.set(OUTCOME[row.outcome] ?? [row.outcome, "calm"]);
        setTime(when, row.startedAt);
        write(took, row.secondsToSafety === null ? "\u2013" : span(row.secondsToSafety));
        write(change, `${revision(row.fromRevision)} \u2192 ${revision(row.toRevision)}`);
        change.className = "short";
        write(words, `${row.cause}:`);
        why.set(row);
      },
    };
  }

  function policyRow() {
    const name = make("span");
    const [mode, guarded, stuck, valid] = [make("span"), make("span"), make("span"), badge()];
    const [why, freeze, until, reason] = [make("span"), make("span"), make("time"), make("span")];
    const last = cell("Freeze", make("div", {}, freeze, " ", until, " ", reason));
    const element = make("tr", { role: "row" }, make("th", { role: "rowheader", scope: "row" }, name),
      cell("Mode", mode), cell("Guarded", guarded), cell("Stuck", stuck),
      cell("In force", make("div", {}, valid.element, " ", why)), last);
    return {
      element,
      set(row) {
        const number = (value) => (value === null ? "\u2013" : String(value));
        write(name, row.name);
        write(mode, row.mode);
        write(guarded, number(row.guarded));
        write(stuck, number(row.stuck));
        valid.set(row.valid === null ? ["Not known yet", "calm"] : row.valid ? ["Yes", "good"] : ["Not valid", "bad"]);
        write(why, row.whyNotValid ?? "");
        write(freeze, row.freeze ? `${row.freeze.name} is open, ends` : "none open");
        setTime(until, row.freeze?.until);
        write(reason, row.freeze?.reason ? `(${row.freeze.reason})` : "");
      },
    };
  }

  /** One table, by key: a row that stays keeps its place, its focus and whether it is open. */
  function table(id, keyOf, makeRow, words) {
    const section = byId(id);
    const [grid, body, empty, more, count] = ["table", "tbody", ".empty", ".more", ".count"].map((s) => section.querySelector(s));
    const rows = new Map();
    let first = true;
    return {
      set(data, total, listing) {
        const wanted = new Map(data.map((row) => [keyOf(row), row]));
        for (const [key, row] of rows) {
          if (wanted.has(key)) continue;
          if (row.element.contains(document.activeElement)) section.querySelector("h2").focus();
          row.element.remove();
          rows.delete(key);
        }
        let at = body.firstElementChild;
        for (const [key, value] of wanted) {
          let row = rows.get(key);
          if (!row) {
            row = makeRow();
            if (!first) row.element.classList.add("new");
            rows.set(key, row);
          }
          row.set(value);
          row.text = JSON.stringify(value).toLowerCase();
          if (row.element === at) at = at.nextElementSibling;
          else body.insertBefore(row.element, at);
        }
        grid.hidden = data.length === 0;
        empty.hidden = data.length !== 0;
        write(empty, listing ? "Reading, one moment" : words.none);
        write(count, total.join(", "));
        const left = words.count(data);
        more.hidden = left <= 0;
        write(more, `and ${left} more that are not shown: ${words.all}`);
        if (!listing) first = false;
        this.filter();
      },
      filter() {
        const wanted = byId("filter").value.trim().toLowerCase().split(/\s+/);
        for (const row of rows.values()) row.element.hidden = !wanted.every((word) => row.text.includes(word));
      },
    };
  }

  const deployment = (row) => `${row.namespace}/${row.name}`;
  const RECORDS = "kubectl get rolloutrecords -A";
  let state = null;
  const missing = (part) => part.count - part.rows.length;
  const trouble = table("trouble", deployment, troubleRow, {
    none: "\u2713 Nothing is stuck.", all: RECORDS, count: () => missing(state.stuck) + missing(state.failing),
  });
  const rollbacks = table("rollbacks", deployment, rollbackRow, {
    none: "Nothing was rolled back.", all: RECORDS, count: () => missing(state.rollbacks),
  });
  const policies = table("policies", (row) => row.name, policyRow, {
    none: "There is no policy: nothing is guarded.", all: "kubectl get rolloutpolicies", count: () => missing(state.policies),
  });
  byId("filter").addEventListener("input", () => [trouble, rollbacks].forEach((part) => part.filter()));

  // ---- the guard ----

  function tile(id, text, kind, small = "") {
    const element = byId(id);
    const known = JSON.stringify([text, kind, small]);
    if (element.dataset.known === known) return;
    element.dataset.known = known;
    mark(element, kind);
    element.replaceChildren(text, ...(small ? [make("small", {}, small)] : []));
  }

  function showGuard(guard) {
    const open = guard.breaker.state === "open";
    const words = { open: "Open", closed: "Closed", unknown: "Not known" }[guard.breaker.state];
    tile("breaker", words, { open: "bad", closed: "good" }[guard.breaker.state] ?? "",
      open ? "no rollback starts" : guard.breaker.state === "closed" ? "rollbacks may start" : "");
    if (!guard.watches && !guard.leader) tile("leader", "This replica does not watch", "");
    else if (!guard.leader) tile("leader", "Nobody", "warn", "nothing is rolled back until one leads");
    else tile("leader", guard.leader, "", guard.leads ? "this replica" : "");
    if (guard.stopped !== null) tile("stop", "Pulled", "bad", guard.stopped);
    else tile("stop", "Not pulled", "good");
    if (guard.certificateEnds) {
      const time = make("time");
      setTime(time, guard.certificateEnds);
      const near = Date.parse(guard.certificateEnds) - Date.now() - ahead < 7 * 86_400_000;
      const element = byId("certificate");
      if (element.dataset.known !== guard.certificateEnds) {
        element.dataset.known = guard.certificateEnds;
        element.replaceChildren(time);
      }
      mark(element, near ? "warn" : "good");
    } else tile("certificate", "None served here", "");
    tile("replica", guard.replica ?? "Not named", "");
    write(byId("version"), `rollout-guard ${guard.version}`);
  }

  function showAlerts(now) {
    const alerts = now.problems.map((text) => ["warn", text]);
    if (now.guard.stopped !== null) alerts.unshift(["bad", `The kill switch is pulled, nothing is written: ${now.guard.stopped}`]);
    if (now.guard.breaker.state === "open") alerts.unshift(["bad", `The breaker is open, no rollback starts: ${now.guard.breaker.why}`]);
    const element = byId("alerts");
    const known = JSON.stringify(alerts);
    if (element.dataset.known === known) return;
    element.dataset.known = known;
    element.replaceChildren(...alerts.map(([kind, text]) => make("p", { class: "alert", "data-kind": kind }, text)));
  }

  // ---- news ----

  const keys = (rows, id) => new Map(rows.map((row) => [id(row), row]));

  function announce(news) {
    if (!news.length) return;
    const left = news.length - NEWS;
    write(byId("news"), news.slice(0, NEWS).join(". ") + (left > 0 ? `. And ${left} more` : ""));
  }

  function tellNews(before, now) {
    if (!before || before.listing) return;
    const news = [];
    const [stuckBefore, stuckNow] = [keys(before.stuck.rows, deployment), keys(now.stuck.rows, deployment)];
    for (const [key, row] of stuckNow) if (!stuckBefore.has(key)) news.push(`${key} is stuck: ${row.cause}: ${row.message}`);
    const done = (row) => `${deployment(row)} ${row.startedAt} ${row.outcome}`;
    const rolledBefore = keys(before.rollbacks.rows, done);
    for (const [key, row] of keys(now.rollbacks.rows, done)) {
      if (!rolledBefore.has(key)) news.push(`${deployment(row)}: rollback ${(OUTCOME[row.outcome] ?? [row.outcome])[0].toLowerCase()}`);
    }
    for (const key of stuckBefore.keys()) if (!stuckNow.has(key)) news.push(`${key} is not stuck any more`);
    if (before.guard.breaker.state !== now.guard.breaker.state) news.push(`The breaker is ${now.guard.breaker.state}`);
    announce(news);
  }

  // ---- what comes in ----

  let heard = 0;

  function show(now) {
    ahead = Date.parse(now.at) - Date.now();
    const before = state;
    state = now;
    const [stuck, failing] = [now.stuck.count, now.failing.count];
    document.title = stuck ? `(${stuck} stuck) rollout-guard` : "rollout-guard";
    const counts = now.listing ? [] : [String(stuck), ...(failing ? [`${failing} failing`] : [])];
    trouble.set([...now.stuck.rows, ...now.failing.rows], counts, now.listing);
    rollbacks.set(now.rollbacks.rows, now.listing ? [] : [String(now.rollbacks.count)], now.listing);
    policies.set(now.policies.rows, now.listing ? [] : [String(now.policies.count)], now.listing);
    showGuard(now.guard);
    showAlerts(now);
    tellNews(before, now);
  }

  function showConnection(kind) {
    const element = byId("connection");
    if (kind) {
      if (kind !== element.dataset.state && (kind === "lost" || element.dataset.state === "lost")) {
        announce([kind === "lost" ? "Connection lost, trying again" : "Connected again"]);
      }
      element.dataset.state = kind;
    }
    const age = state ? `${span((Date.now() - heard) / 1000)} old` : "";
    const words = {
      connecting: "Connecting",
      live: `Live, ${age}`,
      lost: age ? `Connection lost, trying again. What you see is ${age}` : "No connection, trying again",
    };
    write(byId("connection-text"), words[element.dataset.state]);
  }

  let source = null;
  let waiting = null;
  let tried = 0;

  function connect() {
    clearTimeout(waiting);
    waiting = null;
    tried = Date.now();
    source?.close();
    const mine = new EventSource("events");
    source = mine;
    mine.onmessage = (event) => {
      if (source !== mine) return;
      heard = Date.now();
      show(JSON.parse(event.data));
      showConnection("live");
    };
    mine.onerror = () => {
      if (source !== mine) return;
      showConnection("lost");
      // The browser tries again by itself where it was not refused.
      if (mine.readyState === EventSource.CLOSED) waiting ??= setTimeout(connect, AGAIN);
    };
  }

  setInterval(() => {
    // A connection of which nobody says that it is gone, as after a sleep.
    const quiet = Date.now() - Math.max(heard, tried) > STALE;
    if (heard && quiet && !waiting && document.visibilityState === "visible") {
      showConnection("lost");
      connect();
    }
    for (const time of document.querySelectorAll("time")) showTime(time);
    showConnection();
  }, 1_000);

  connect();
})();
