// Copier's tab: asks the server what is new, checks the form after a change, puts messages beside their
// fields, and moves the divider of the A/B pictures. Touches nothing outside its own tab.
(() => {
    if (window.copierTab) return;
    window.copierTab = true;

    const FAST = 1000, SLOW = 4000, SETTLE = 500, OVERDUE = 10000, AGAIN = 1500;
    const GRACE = 1500, REACTS = 15000, LONGEST = 120000;
    let waitingSince = 0, lastPoll = 0, checkTimer = 0, wasLive = "", opened = false, probing = false;

    const root = () => {
        const app = document.querySelector("gradio-app");
        return (app && app.shadowRoot) || document;
    };
    const find = (id) => root().getElementById ? root().getElementById(id) : root().querySelector("#" + id);
    const press = (id) => { const one = find(id); if (one) one.click(); return Boolean(one); };
    const inTab = (node) => Boolean(node && node.closest && node.closest("#copier_tab"));
    // What was hit, also where the host keeps its page in a shadow root.
    const hit = (event) => event.composedPath ? event.composedPath()[0] : event.target;
    const visible = (node) => Boolean(node && node.offsetParent !== null);

    const counted = (id) => {
        const one = root().querySelector("#" + id + " .copier-pulse");
        return one ? one.dataset.count : "";
    };
    const pulse = () => counted("copier_run__pulse");
    let heard = "", filesSince = 0, reacted = true;

    // What the page asks by itself, and where the answers are counted.
    const COUNTS = {
        copier_run__poll: "copier_run__pulse",
        copier_run__check: "copier_run__checked",
        copier_run__opened: "copier_run__listed",
    };
    const asked = {};

    function ask(id) {
        asked[id] = {since: Date.now(), count: counted(COUNTS[id])};
        return press(id);
    }

    function awaited() {
        return Object.entries(asked).some(([id, one]) =>
            counted(COUNTS[id]) === one.count && Date.now() - one.since < LONGEST);
    }

    function tick() {
        const tab = find("copier_tab");
        if (!visible(tab) || document.hidden) return;
        if (!opened) opened = ask("copier_run__opened");
        const now = Date.now();
        if (waitingSince && pulse() !== heard) { waitingSince = 0; heard = pulse(); settled(); }
        if (overdue()) return probe();
        if (waitingSince || uploading()) return;
        const live = root().querySelector('#copier_tab [data-live="1"]');
        if (now - lastPoll < (live ? FAST : SLOW)) return;
        heard = pulse();
        if (ask("copier_run__poll")) { lastPoll = now; waitingSince = now; }
    }

    const overdue = () => waitingSince && Date.now() - waitingSince > OVERDUE;

    // The program may have ended: the server is asked for a sign of life, and for nothing else until it gives
    // one, or gradio would put a message for each of its requests over the page.
    function probe() {
        if (probing) return;
        probing = true;
        fetch(location.href, {method: "HEAD", cache: "no-store"})
            .then(() => { waitingSince = 0; lastPoll = 0; })
            .catch(() => {})
            .finally(() => setTimeout(() => { probing = false; }, AGAIN));
    }

    function settled() {
        const live = [...root().querySelectorAll("#copier_tab [data-live]")]
            .map((one) => one.dataset.live + (one.dataset.other || "")).join();
        if (live !== wasLive) { wasLive = live; scheduleCheck(); }
    }

    // The server changes the form too: pictures arrive, a recipe is loaded. Then it is checked again.
    const ANSWERS = ["original__view", "original__line", "edited__view", "preset__explanation", "preset__said",
        "captions__table"];
    let answered = "";

    function noticeAnswers() {
        const now = ANSWERS.map((name) => (find("copier_" + name) || {}).textContent || "").join("|");
        if (now !== answered) { answered = now; scheduleCheck(); }
    }

    function scheduleCheck() {
        clearTimeout(checkTimer);
        checkTimer = setTimeout(() => overdue() || uploading() ? scheduleCheck() : ask("copier_run__check"), SETTLE);
    }

    // gradio 3 forgets a file that it sends when any answer arrives meanwhile, and says "Uploading..." for
    // ever. So files wait for the answers that are under way, and nothing is asked until they have arrived:
    // first until their place shows anything of them, which takes long on a busy machine.
    function uploading() {
        const took = Date.now() - filesSince;
        if (took < GRACE || (!reacted && took < REACTS)) return true;
        const rows = [...root().querySelectorAll("#copier_tab td.download")];
        return took < LONGEST && rows.some((row) => !row.querySelector("a"));
    }

    function holdFiles(event) {
        const target = hit(event);
        const given = event.type === "drop" ? event.dataTransfer : target;
        if (!inTab(target) || !given || !given.files || !given.files.length) return;
        filesSince = Date.now();
        if (event.copierHeld || !awaited()) return noticeReaction(target);
        event.stopImmediatePropagation();
        event.preventDefault();
        const kept = new DataTransfer();
        for (const file of given.files) kept.items.add(file);
        passFiles(event.type, target, kept);
    }

    function noticeReaction(target) {
        reacted = false;
        const place = target.closest("[id^=copier_]");
        const watcher = new MutationObserver(() => { reacted = true; watcher.disconnect(); });
        watcher.observe(place, {childList: true, characterData: true, subtree: true});
    }

    function passFiles(type, target, kept) {
        filesSince = Date.now();
        if (awaited()) return setTimeout(() => passFiles(type, target, kept), 50);
        const again = type === "drop"
            ? new DragEvent(type, {bubbles: true, cancelable: true, dataTransfer: kept})
            : new Event(type, {bubbles: true});
        again.copierHeld = true;
        if (type !== "drop") target.files = kept.files;
        target.dispatchEvent(again);
    }

    function soon() { lastPoll = 0; }

    function changed(event) {
        const target = hit(event);
        if (!inTab(target)) return;
        if (target.closest(".copier-swipe")) return;
        if (target.closest("#copier_run__check, #copier_run__poll, #copier_run__opened")) return;
        if (event.type === "click" && target.closest("button")) setTimeout(soon, 300);
        scheduleCheck();
    }

    // A sentence beside each field that blocks Start; they are listed above Start as well.
    function placeMessages() {
        const lines = [...root().querySelectorAll("#copier_run__problems li[data-for]")];
        const wanted = new Map(lines.map((line) => [line.dataset.for, line.textContent]));
        for (const old of root().querySelectorAll("#copier_tab .copier-beside")) {
            const id = old.dataset.of;
            if (wanted.get(id) === old.textContent) wanted.delete(id); else { unmark(id); old.remove(); }
        }
        for (const [id, message] of wanted) {
            const field = find(id);
            if (!field || field.tagName === "BUTTON") continue;
            const said = document.createElement("div");
            said.className = "copier-beside";
            said.dataset.of = id;
            said.setAttribute("role", "alert");
            said.textContent = message;
            field.appendChild(said);
            field.classList.add("copier-wrong");
        }
    }
    function unmark(id) { const field = find(id); if (field) field.classList.remove("copier-wrong"); }

    // What the page keeps as JSON in a field that nobody sees.
    const keeper = (id) => { const one = find(id); return one && one.querySelector("textarea, input"); };
    function keep(id, value) {
        const field = keeper(id);
        field.value = JSON.stringify(value);
        field.dispatchEvent(new Event("input", {bubbles: true}));
    }

    // A caption was typed into the table.
    function caption(event) {
        const field = hit(event);
        if (!field.dataset || !field.dataset.caption || !inTab(field)) return;
        const known = JSON.parse(keeper("copier_captions__texts").value);
        keep("copier_captions__texts", {...known, [field.dataset.caption]: field.value});
    }

    // The server says what of the captions is told to the trainings; the table, in which somebody may be
    // typing, stays.
    function placeTold() {
        const told = [...root().querySelectorAll("#copier_captions__told [data-for]")];
        const texts = new Map(told.map((one) => [one.dataset.for, one.textContent]));
        for (const cell of root().querySelectorAll("#copier_captions__table [data-told]")) {
            const text = texts.has(cell.dataset.told) ? texts.get(cell.dataset.told) : "–";
            if (cell.textContent !== text) cell.textContent = text;
        }
    }

    // The cross of a picture takes it out.
    function takeOut(event) {
        const cross = hit(event);
        if (!cross.dataset || !cross.dataset.out || !inTab(cross)) return;
        keep("copier_original__out", cross.dataset.out);
        press("copier_original__take_one");
    }

    // A picture of those that were drawn is chosen. gradio's own event for that stays away where the place of
    // the picture was clicked before, though another one is there now.
    function choose(event) {
        const target = hit(event);
        const one = target.closest && target.closest("#copier_original__gallery .thumbnail-item");
        if (!one) return;
        const all = find("copier_original__gallery").querySelectorAll(".thumbnail-item");
        keep("copier_original__clicked", [...all].indexOf(one));
        press("copier_original__pick");
    }

    function swipe(event) {
        const input = hit(event);
        const box = input.closest && input.closest(".copier-swipe");
        if (box) box.style.setProperty("--copier-at", input.value + "%");
    }

    // The report inside its frame is light or dark like the page around it.
    function themeFrames() {
        for (const frame of root().querySelectorAll("#copier_tab iframe.copier-frame")) {
            const page = frame.contentDocument;
            if (!page || !page.body) continue;
            const dark = document.body.classList.contains("dark");
            if (page.documentElement.dataset.dark === String(dark)) continue;
            page.documentElement.dataset.dark = String(dark);
            page.documentElement.style.colorScheme = dark ? "dark" : "light";
            for (const sheet of page.styleSheets) {
                for (const rule of sheet.cssRules) {
                    if (!rule.media) continue;
                    const text = rule.dataCopier || rule.media.mediaText;
                    if (!text.includes("prefers-color-scheme: dark")) continue;
                    rule.dataCopier = text;
                    rule.media.mediaText = dark ? "all" : "not all";
                }
            }
        }
    }

    // In a WebUI: show this tab; read the cards of LoRAs again when one was installed.
    window.copierShow = () => {
        const tabs = [...root().querySelectorAll("#tabs > .tab-nav button")];
        const own = tabs.find((one) => one.textContent.trim() === "Copier");
        if (own) own.click();
    };
    let installed = "";

    function refreshCards() {
        const one = root().querySelector("#copier_result__said [data-installed]");
        const now = one ? one.dataset.installed : "";
        if (now && now !== installed) {
            for (const tab of ["txt2img", "img2img"]) press(tab + "_lora_extra_refresh_internal");
        }
        installed = now || installed;
    }

    // A WebUI's own script presses Generate for Ctrl+Enter, and nothing for Esc outside its own tabs.
    function keys(event) {
        if (!visible(find("copier_tab"))) return;
        if (event.key === "Escape") press("copier_original__interrupt");
        const alone = typeof get_uiCurrentTabContent === "undefined";
        if (alone && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
            press("copier_original__generate");
        }
    }

    document.addEventListener("keydown", keys);
    for (const type of ["change", "drop"]) document.addEventListener(type, holdFiles, true);
    document.addEventListener("input", swipe, true);
    document.addEventListener("change", caption, true);
    document.addEventListener("click", takeOut, true);
    document.addEventListener("click", choose, true);
    for (const type of ["input", "change", "focusout", "click", "drop"]) {
        document.addEventListener(type, changed, true);
    }
    document.addEventListener("visibilitychange", soon);
    setInterval(() => { tick(); noticeAnswers(); placeMessages(); placeTold(); themeFrames(); refreshCards(); }, 250);
})();
