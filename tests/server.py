"""A local endpoint that speaks Chat Completions and the Batch API, with a log of every request and faults on demand.

    with Server(faults={'429': .2, 'drop': .05}) as server:
        connect(server).ask(...)
        server.log  # one dict per request, in the order of arrival

    python tests/server.py --port 8000 [--echo] [--latency 0.1] [--fault 429=0.2 ...] [--rpm 600] [--key SECRET]

Outcomes, as planned with `plan` (one after the other) or `faults` (shares), and as they stand in the log: ok, 429,
500, 503, drop (connection closed without a reply), hang (no reply until the client leaves), truncated (finish_reason
length), empty, filter, garbage (200 without JSON), 400, 401, 403, 404.
"""
import argparse, asyncio, json, random, re, sqlite3, threading, time
from email.utils import formatdate

kinds = ('ok', '429', '500', '503', 'drop', 'hang', 'truncated', 'empty', 'filter', 'garbage', '400', '401', '403',
         '404')


class Limiter:
    "A bucket of `size` requests that refills with `rpm` per minute."
    def __init__(self, rpm, size=None):
        self.rpm, self.size = rpm, size or rpm
        self.left, self.then = self.size, time.monotonic()

    def take(self):
        "Return the seconds to wait, or 0 if the request may pass."
        now = time.monotonic()
        self.left, self.then = min(self.size, self.left + (now - self.then)*self.rpm/60), now
        if self.left < 1: return (1 - self.left)*60/self.rpm
        self.left -= 1
        return 0

    def headers(self):
        reset = (self.size - self.left)*60/self.rpm
        return {'x-ratelimit-limit-requests': str(self.rpm), 'x-ratelimit-remaining-requests': str(int(self.left)),
                'x-ratelimit-reset-requests': f'{reset:.3f}s'}


class Server:
    "Runs in its own thread during a `with` block."
    def __init__(self, *recordings,
        faults=(),         # outcome -> share of the requests
        plan=(),           # outcomes of the first requests
        seed=0,            # random seed of the faults
        latency=0.,        # seconds before a reply
        echo=False,        # answer any prompt with an echo instead of from the recordings
        rpm=None,          # rate limit, requests per minute
        bucket=None,       # requests that the rate limit allows at once; `rpm` if None
        headers=True,      # send rate-limit headers
        key=None,          # the only API key that is accepted; None for any
        retry_after=None,  # seconds, or 'date', in the header Retry-After
        refuse=(),         # text in the body of a request -> message of a 400
        port=0, log=None, keep_log=True,
        batch_after=0,     # looks at a batch until it is ready
    ):
        self.faults, self.plan, self.random = dict(faults), list(plan), random.Random(seed)
        self.latency, self.key = latency, key
        self.limiter, self.headers = Limiter(rpm, bucket) if rpm else None, headers
        self.retry_after, self.refuse, self.batch_after = retry_after, dict(refuse), batch_after
        self.port, self.path, self.log, self.keep_log = port, log, [], keep_log
        self.in_flight = self.peak = 0
        self.files, self.batches, self.app = {}, {}, None
        if not echo:
            from llm_distill.teacher.recording import RecordingApp
            self.app = RecordingApp(*recordings)

    # life
    def __enter__(self):
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(30), 'the server did not start'
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def _run(self, ready):
        asyncio.set_event_loop(self.loop)
        start = asyncio.start_server(self._connection, '127.0.0.1', self.port, backlog=1024)
        server = self.loop.run_until_complete(start)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self.loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self.loop)
        for t in tasks: t.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    @property
    def url(self): return f'http://127.0.0.1:{self.port}/v1'

    def outcomes(self):
        "Count the requests by outcome."
        log = list(self.log)
        counts = {k: sum(o['outcome'] == k for o in log) for k in kinds}
        return {k: n for k, n in counts.items() if n}

    # HTTP
    async def _connection(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').split('\r\n')
                method, path, _ = head[0].split(' ', 2)
                headers = {k.strip().lower(): v.strip() for k, _, v in (o.partition(':') for o in head[1:] if o)}
                body = await reader.readexactly(int(headers.get('content-length', 0)))
                self.in_flight += 1
                self.peak = max(self.peak, self.in_flight)
                try: status, extra, content = await self._respond(method, path.split('?')[0], headers, body)
                finally: self.in_flight -= 1
                if status is None: break
                fields = {'content-type': 'application/json', 'content-length': len(content)} | extra
                lines = [f'HTTP/1.1 {status} X', *(f'{k}: {v}' for k, v in fields.items()), '', '']
                writer.write('\r\n'.join(lines).encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError): pass
        finally: writer.close()

    async def _respond(self, method, path, headers, body):
        "Return status, headers and content; a status of None closes the connection."
        is_chat = path.endswith('/chat/completions')
        key = headers.get('authorization', '').removeprefix('Bearer ')
        if self.key and key != self.key: # as OpenAI does, the message repeats the key
            if is_chat: self._note('401', body, headers)
            message = f'Incorrect API key provided: {key}. You can find your API key at https://example.com.'
            return 401, {}, error(message, code='invalid_api_key')
        if is_chat and method == 'POST': return await self._chat(headers, json.loads(body))
        if '/files' in path or '/batches' in path:
            return self._batch_api(method, path.split('/v1', 1)[-1], headers, body)
        return 404, {}, error(f'no such path: {path}')

    # Chat Completions
    async def _chat(self, headers, body):
        wait = self.limiter.take() if self.limiter else 0
        outcome = '429' if wait else self._outcome()
        entry = self._note(outcome, body, headers)
        extra = self.limiter.headers() if self.limiter and self.headers else {}
        if self.latency: await asyncio.sleep(self.latency)
        if outcome == 'hang': await asyncio.sleep(3600)
        if outcome == 'drop': return None, {}, b''
        refusal = self._refusal(body)
        if refusal:
            entry['outcome'] = '400'
            return 400, {}, refusal
        if outcome in ('429', '503'): extra |= self._retry_after(wait)
        if outcome.isdigit(): return int(outcome), extra, error(f'a planned {outcome}')
        if outcome == 'garbage': return 200, extra, b'<html>It works!</html>'
        status, answer = self.answer(body, headers)
        if status != 200: entry['outcome'] = str(status)
        elif outcome != 'ok': self._spoil(answer['choices'][0], outcome)
        entry['answered'] = time.monotonic()
        return status, extra, json.dumps(answer).encode()

    def _refusal(self, body):
        text = json.dumps({k: v for k, v in body.items() if k != 'messages'})
        for name, message in self.refuse.items():
            if name in text: return error(message, param=name if name in body else None, code='unsupported_parameter')
        return None

    def _outcome(self):
        if self.plan: return self.plan.pop(0)
        x = self.random.random()
        for kind, share in self.faults.items():
            if x < share: return kind
            x -= share
        return 'ok'

    def _note(self, outcome, body, headers):
        body = json.loads(body) if isinstance(body, bytes) else body
        entry = dict(
            n=len(self.log), at=time.monotonic(), outcome=outcome, prompt=body['messages'][-1]['content'],
            stage=headers.get('x-llm-distill-stage'), sample=int(headers.get('x-llm-distill-sample', 0)),
            body={k: v for k, v in body.items() if k != 'messages'})
        if self.keep_log: self.log.append(entry)
        if self.path:
            with open(self.path, 'a') as f: f.write(json.dumps(entry) + '\n')
        return entry

    def _retry_after(self, wait):
        if self.retry_after is None: return {'retry-after': f'{wait:.3f}'} if wait else {}
        if self.retry_after == 'date': return {'retry-after': formatdate(time.time() + 1, usegmt=True)}
        return {'retry-after': str(self.retry_after)}

    def answer(self, body, headers):
        "Return status and chat completion, recorded or an echo of the prompt."
        if self.app: return self.app.answer(body, headers)
        prompt = body['messages'][-1]['content']
        usage = dict(prompt_tokens=len(prompt)//4 + 4, completion_tokens=8)
        message = dict(role='assistant', content=f'echo of {prompt}')
        choices = [dict(index=0, finish_reason='stop', message=message)]
        return 200, dict(id='x', object='chat.completion', created=0, model=body['model'], usage=usage, choices=choices)

    def _spoil(self, choice, outcome):
        text = choice['message']['content']
        match outcome:
            case 'truncated' | 'cut': text, choice['finish_reason'] = text[:10], 'length'
            case 'empty': text = ''
            case 'filter': text, choice['finish_reason'] = None, 'content_filter'
        choice['message']['content'] = text

    # Batch API
    def _batch_api(self, method, path, headers, body):
        parts = path.strip('/').split('/')
        if parts[0] == 'files' and method == 'POST':
            boundary = re.search('boundary=("?)([^";]+)', headers['content-type'])[2].encode()
            part = next(o for o in body.split(b'--' + boundary) if b'name="file"' in o)
            content = part.split(b'\r\n\r\n', 1)[1].rsplit(b'\r\n', 1)[0]
            return self._json(self._file(content.decode()))
        if parts[0] == 'files': return 200, {}, self.files[parts[1]].encode()
        if method == 'POST' and len(parts) == 1: return self._json(self._new_batch(json.loads(body)))
        if len(parts) == 2: return self._json(self._batch(parts[1]))
        return self._json(dict(object='list', data=[self._batch(o) for o in self.batches], has_more=False))

    def _json(self, value): return 200, {}, json.dumps(value).encode()

    def _file(self, text):
        name = f'file-{len(self.files)}'
        self.files[name] = text
        return dict(id=name, object='file', bytes=len(text), created_at=0, filename='x.jsonl', purpose='batch',
                    status='processed')

    def _new_batch(self, body):
        name = f'batch-{len(self.batches)}'
        self.batches[name] = dict(body, polls=0)
        return self._batch(name)

    def _batch(self, name):
        "Return a batch's state; after `batch_after` looks it is completed."
        b = self.batches[name]
        b['polls'] += 1
        state = dict(id=name, object='batch', endpoint=b['endpoint'], input_file_id=b['input_file_id'],
                     completion_window='24h', created_at=0, metadata=b.get('metadata'), status='in_progress')
        if b['polls'] <= self.batch_after: return state
        if 'output' not in b: self._work_off(b)
        return state | dict(status='completed', output_file_id=b['output'], error_file_id=b['errors'])

    def _work_off(self, b):
        answered, failed = [], []
        headers = {'x-llm-distill-stage': (b.get('metadata') or {}).get('stage', '')}
        for line in self.files[b['input_file_id']].splitlines():
            request = json.loads(line)
            outcome = self._outcome()
            self._note(outcome, request['body'], {'x-llm-distill-stage': 'batch'})
            if outcome.isdigit():
                response = dict(status_code=int(outcome), body=json.loads(error('planned')))
                failed.append(dict(custom_id=request['custom_id'], response=response, error=None))
                continue
            status, answer = self.answer(request['body'], headers)
            if outcome != 'ok': self._spoil(answer['choices'][0], outcome)
            response = dict(status_code=status, body=answer)
            answered.append(dict(custom_id=request['custom_id'], response=response, error=None))
        self.random.shuffle(answered)
        b['output'], b['errors'] = self._result_file(answered), self._result_file(failed)

    def _result_file(self, rows):
        if not rows: return None
        return self._file(''.join(json.dumps(o) + '\n' for o in rows))['id']


def error(message, param=None, code=None):
    return json.dumps(dict(error=dict(message=message, type='invalid_request_error', param=param, code=code))).encode()


SECRET = 'hunter2-sesame-0123456789' # the key of `connect`


def connect(server, **kwargs):
    "Return a quick teacher for a server or a URL."
    from llm_distill.teacher.teacher import Teacher
    defaults = dict(api_key=SECRET, progress=False, backoff=.01, timeout=20)
    return Teacher('test-model', getattr(server, 'url', server), **defaults | kwargs)


def prompts(n, start=0): return [f'prompt {i:05}' for i in range(start, start + n)]


def echoes(n, start=0): return [f'echo of {p}' for p in prompts(n, start)]


def received(server, outcome=None):
    "List the prompts that a server got, or those with one outcome."
    return [o['prompt'] for o in server.log if outcome in (None, o['outcome'])]


def cached_prompts(path):
    "Return the prompts whose replies are in a cache file."
    rows = sqlite3.connect(path).execute('select request from replies')
    return {json.loads(request)['messages'][-1]['content'] for request, in rows}


def wait_for(condition, what):
    "Wait up to a minute until a condition holds."
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f'waited in vain for {what}'
        time.sleep(.001)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--port', type=int, default=8000)
    p.add_argument('--echo', action='store_true', help='answer any prompt with an echo instead of from the recordings')
    p.add_argument('--latency', type=float, default=0., help='seconds before a reply')
    p.add_argument('--fault', action='append', default=[], help='OUTCOME=SHARE, e.g. 429=0.2')
    p.add_argument('--rpm', type=float), p.add_argument('--key'), p.add_argument('--log')
    p.add_argument('--no-log', action='store_true', help='keep no log in memory')
    a = p.parse_args()
    faults = {k: float(v) for k, v in (o.split('=') for o in a.fault)}
    options = dict(latency=a.latency, echo=a.echo, rpm=a.rpm, key=a.key, port=a.port, log=a.log)
    with Server(faults=faults, keep_log=not a.no_log, **options) as s:
        print(s.url, flush=True)
        try: threading.Event().wait()
        except KeyboardInterrupt: pass
