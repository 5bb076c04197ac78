"Chromium without a window, driven through a pipe by the DevTools protocol; needs no package."
import base64, json, os, shutil, subprocess, time

import pytest

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_chromium = pytest.mark.skipif(not chromium, reason='Chromium is not installed')
flags = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe').split()
codes = dict(Enter=13, Escape=27, ArrowLeft=37, ArrowRight=39, Tab=9, End=35)


class Browser:
    "A page in Chromium; it reads commands from file descriptor 3 and writes replies to 4."
    def __init__(self, profile, width=1280):
        self.n, self.events, self.buffer = 0, [], b''
        command_read, self.commands = os.pipe()
        self.replies, reply_write = os.pipe()
        shell = f'exec "$@" 3<&{command_read} 4>&{reply_write}'
        self.process = subprocess.Popen(
            ['/bin/bash', '-c', shell, 'browser', chromium, *flags, f'--user-data-dir={profile}', 'about:blank'],
            pass_fds=(command_read, reply_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in command_read, reply_write: os.close(fd)
        self.session = None
        targets = self.send('Target.getTargets')['targetInfos']
        target = next(t['targetId'] for t in targets if t['type'] == 'page')
        self.session = self.send('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in 'Page', 'Runtime', 'Log', 'Network': self.send(f'{domain}.enable')
        self.resize(width)

    def __enter__(self): return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(30)
        for fd in self.commands, self.replies: os.close(fd)

    def send(self, method, **params):
        "Send a command and return its result; events that arrive meanwhile are kept."
        self.n += 1
        message = dict(id=self.n, method=method, params=params)
        if self.session: message['sessionId'] = self.session
        os.write(self.commands, json.dumps(message).encode() + b'\0')
        while True:
            reply = self.receive()
            if reply.get('id') != self.n:
                self.events.append(reply)
                continue
            assert 'error' not in reply, reply
            return reply['result']

    def receive(self):
        while b'\0' not in self.buffer:
            chunk = os.read(self.replies, 1 << 16)
            assert chunk, 'Chromium has ended'
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b'\0')
        return json.loads(message)

    def open(self, path):
        self.events.clear()
        self.send('Page.navigate', url=path.as_uri())
        self.wait('document.readyState === "complete" && location.protocol === "file:"')

    def run(self, script):
        "Return the value of a JavaScript expression."
        result = self.send('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def wait(self, script, seconds=30):
        "Wait until an expression is true."
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f'{script} stayed false'
            time.sleep(.02)

    def wait_for_file(self, path, seconds=30):
        "Wait until a download is complete and return its path."
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, f'{path} did not arrive'
            time.sleep(.02)
        return path

    def press(self, *keys):
        "Press keys, such as `a`, `A`, `Control+Enter`."
        for key in keys:
            *modifiers, name = key.split('+')
            bits = sum(dict(Alt=1, Control=2, Meta=4, Shift=8)[m] for m in modifiers)
            if len(name) == 1 and name.isupper(): bits |= 8
            event = dict(key=name, modifiers=bits, windowsVirtualKeyCode=codes.get(name, ord(name[0].upper())))
            if name.isascii() and name.isalpha() and len(name) == 1: event['code'] = f'Key{name.upper()}'
            if len(name) == 1 and not bits & 6: event['text'] = name
            self.send('Input.dispatchKeyEvent', type='keyDown', **event)
            self.send('Input.dispatchKeyEvent', type='keyUp', **{k: v for k, v in event.items() if k != 'text'})

    def type(self, text): self.send('Input.insertText', text=text)

    def resize(self, width, height=800):
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send('Emulation.setDeviceMetricsOverride', **size)

    def dark(self, is_dark=True):
        features = [dict(name='prefers-color-scheme', value='dark' if is_dark else 'light')]
        self.send('Emulation.setEmulatedMedia', features=features)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.send('Page.captureScreenshot')['data']))

    def download_to(self, folder):
        session, self.session = self.session, None
        self.send('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(folder))
        self.session = session

    def problems(self):
        "Return errors of scripts and of the console, and requests for anything but files."
        problems = [e for e in self.events if e['method'] in ('Runtime.exceptionThrown', 'Runtime.consoleAPICalled')]
        problems += [e for e in self.events if e['method'] == 'Log.entryAdded']
        requests = [e['params']['request']['url'] for e in self.events if e['method'] == 'Network.requestWillBeSent']
        return problems + [url for url in requests if not url.startswith(('file:', 'blob:'))]
