'use strict'

// `data.items` are the answers to check. A decision has `verdict`, `correct`, `student_verdict`, `prediction` and `time`;
// one without verdicts was undone. Text is only ever set as `textContent` or as the value of the editor.
const data = JSON.parse(document.getElementById('data').textContent)
const items = data.items
const storage_key = 'llm_distill review ' + data.hash
const decisions = new Map()  // number of an item -> decision
const earlier = []           // [number of an item, its decision before]
let current = 0

const get = id => document.getElementById(id)
const say = text => { get('status').textContent = text }
const verdictOf = i => decisions.get(i)?.verdict ?? null

function studentVerdictOf(i) {
  const decision = decisions.get(i)
  return decision && decision.prediction === items[i].prediction ? decision.student_verdict ?? null : null
}

// Decisions in the browser and in the run

function merge(i, decision) {
  const old = decisions.get(i)
  if (items[i] && decision && (!old || old.time <= decision.time)) decisions.set(i, decision)
}

function load() {
  items.forEach((item, i) => merge(i, item.decision))
  try {
    for (const [i, decision] of JSON.parse(localStorage.getItem(storage_key) ?? '[]')) merge(i, decision)
  } catch (error) { reportStorage() }
}

function store() {
  try {
    localStorage.setItem(storage_key, JSON.stringify([...decisions]))
    return true
  } catch (error) { return reportStorage() }
}

function reportStorage() {
  window.onbeforeunload = () => true
  say('This browser cannot keep your decisions. Save review.jsonl before you close the page.')
  return false
}

function decide(i, change) {
  earlier.push([i, decisions.get(i)])
  decisions.set(i, {...decisions.get(i), ...change, time: new Date().toISOString()})
  return store()
}

function undo() {
  if (!earlier.length) return say('Nothing to undo.')
  const [i, old] = earlier.pop()
  decisions.set(i, {...old, time: new Date().toISOString()})
  store()
  show(i)
  say('Undone.')
}

function toRow(item, decision) {
  const {split, question, answer} = item
  const {verdict = null, correct, student_verdict, prediction, time} = decision
  const row = {split, question, answer, verdict}
  if (verdict === 'edit') row.correct = correct
  if (student_verdict) Object.assign(row, {student_verdict, prediction})
  return {...row, time}
}

function save() {
  const kept = [...decisions].filter(([i, d]) => d.verdict || d.student_verdict || items[i].decision)
  const lines = kept.sort(([a], [b]) => a - b).map(([i, d]) => JSON.stringify(toRow(items[i], d)) + '\n')
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob(lines, {type: 'application/jsonl'}))
  link.download = 'review.jsonl'
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
  window.onbeforeunload = null
  say(`Saved ${lines.length} decisions as review.jsonl.`)
}

// Rows to show

const filters = {
  all: () => true,
  open: i => !verdictOf(i),
  rejected: i => ['reject', 'edit'].includes(verdictOf(i)),
}

const isShown = i => items[i].shown && filters[get('filter').value](i)

function find(start, step) {
  for (let i = start; i >= 0 && i < items.length; i += step) if (isShown(i)) return i
  return null
}

function move(step) {
  const i = find(current + step, step)
  if (i === null) say(step > 0 ? 'This is the last row.' : 'This is the first row.')
  else show(i)
  return i !== null
}

function changeFilter() {
  const i = find(current, 1) ?? find(current, -1)
  if (i === null) say('There are no such rows.')
  else if (i !== current) show(i, false)
}

// The card

// Make control characters and reversed writing visible, so that what is judged is what is seen.
const visible = text => text.replace(/\r\n/g, '\n').replace(/[\u0000-\u0008\u000b-\u001f\u007f\u202d\u202e]/g,
  c => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}⟩`)

function setText(id, text) {
  get(id).textContent = visible(text ?? '')
  get(id).classList.toggle('code', /^[ \t]+\S/m.test(text ?? ''))
}

function setVerdict(id, verdict) {
  const words = {accept: 'accepted', reject: 'rejected', edit: 'edited'}
  get(id).textContent = words[verdict] ?? ''
  if (verdict) get(id).dataset.value = verdict
  else delete get(id).dataset.value
}

function setPressed(verdict, ids) {
  for (const [name, id] of Object.entries(ids)) get(id).setAttribute('aria-pressed', String(verdict === name))
}

function show(i, focus = true) {
  current = i
  closeEditor()
  const item = items[i]
  get('place').textContent = `Row ${item.number} of ${data.counts[item.split]}, ${data.titles[item.split]}`
  setText('question', item.question)
  setText('answer', item.answer)
  setText('prediction', item.prediction)
  get('student').hidden = item.prediction === null
  showDecision()
  if (!focus) return
  say('')
  window.scrollTo(0, 0)
  get('place').focus({preventScroll: true})
}

function showDecision() {
  const decision = decisions.get(current)
  setVerdict('verdict', verdictOf(current))
  setVerdict('student-verdict', studentVerdictOf(current))
  setPressed(verdictOf(current), {accept: 'accept', reject: 'reject', edit: 'edit'})
  setPressed(studentVerdictOf(current), {accept: 'student-accept', reject: 'student-reject'})
  get('corrected').hidden = verdictOf(current) !== 'edit'
  setText('correct', decision?.correct)
  showProgress()
}

function showProgress() {
  const shown = [...items.keys()].filter(i => items[i].shown)
  const count = verdict => shown.filter(i => verdictOf(i) === verdict).length
  const n_checked = shown.length - count(null)
  get('bar').max = shown.length
  get('bar').value = n_checked
  get('count').textContent = `${n_checked} of ${shown.length} checked: ${count('accept')} accepted, ` +
    `${count('reject')} rejected, ${count('edit')} edited`
}

// Decisions on the card

function judge(change, words) {
  const kept = decide(current, change)
  showDecision()
  const done = verdictOf(current) && (items[current].prediction === null || studentVerdictOf(current))
  const moved = done && move(1)
  if (!kept) return reportStorage()
  if (moved) return say(words)
  if (!done) return say(verdictOf(current) ? `${words} Judge the student’s answer too, or go on.` : words)
  say(words + ' No further row.')
}

const accept = () => judge({verdict: 'accept', correct: undefined}, 'Accepted.')
const reject = () => judge({verdict: 'reject', correct: undefined}, 'Rejected.')

function judgeStudent(verdict) {
  const prediction = items[current].prediction
  if (prediction === null) return say('There is no answer of a student.')
  const words = verdict === 'accept' ? 'Student’s answer accepted.' : 'Student’s answer rejected.'
  judge({student_verdict: verdict, prediction}, words)
}

// The editor. A text area turns every line break into a line feed, so those of the answer are restored.

const normalize = text => text.replace(/\r\n?/g, '\n')

function edit() {
  get('editor').hidden = false
  get('decide').hidden = true
  get('text').value = decisions.get(current)?.correct ?? items[current].answer
  get('text').focus()
  get('editor').scrollIntoView({block: 'nearest'})
}

function closeEditor() {
  get('editor').hidden = true
  get('decide').hidden = false
}

function keep() {
  const text = get('text').value
  const answer = items[current].answer
  if (!text.trim()) return say('Write the right answer, or cancel and reject the answer.')
  closeEditor()
  get('place').focus({preventScroll: true})
  if (text === normalize(answer)) accept()
  else judge({verdict: 'edit', correct: answer.includes('\r\n') ? text.replace(/\n/g, '\r\n') : text}, 'Edited.')
}

function cancel() {
  closeEditor()
  get('edit').focus()
  say('The text was dropped.')
}

// Keys and buttons

const help = () => get('keys').showModal()
const next = () => move(1)
const previous = () => move(-1)

const keys = {
  a: accept, r: reject, e: edit, j: next, k: previous, ArrowRight: next, ArrowLeft: previous, u: undo, s: save, '?': help,
  A: () => judgeStudent('accept'), R: () => judgeStudent('reject'),
}

// The letter of a key: that on a Latin keyboard, or its place on another one; in capitals only with Shift.
function nameOf(event) {
  const isLetter = /^Key[A-Z]$/.test(event.code) && !/^[a-z]$/i.test(event.key)
  const key = isLetter ? event.code.slice(3) : event.key
  if (!/^[a-z]$/i.test(key)) return key
  return event.shiftKey ? key.toUpperCase() : key.toLowerCase()
}

function handleEditorKey(event) {
  if (event.key === 'Escape') return cancel()
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return
  event.preventDefault()
  keep()
}

document.addEventListener('keydown', event => {
  if (event.isComposing) return
  if (!get('editor').hidden) return handleEditorKey(event)
  const typing = event.target.closest('select, textarea, input')
  if (event.ctrlKey || event.metaKey || event.altKey || typing || get('keys').open || !get('shortcuts').checked) return
  const action = keys[nameOf(event)]
  if (!action) return
  event.preventDefault()
  action()
})

const buttons = {
  accept, reject, edit, keep, cancel, save, help, undo, next, previous, close: () => get('keys').close(),
  'student-accept': keys.A, 'student-reject': keys.R,
}
for (const [id, action] of Object.entries(buttons)) get(id).addEventListener('click', action)
get('filter').addEventListener('change', changeFilter)
window.addEventListener('storage', event => {
  if (event.key !== storage_key) return
  load()
  showDecision()
})

load()
show(find(0, 1) === null ? 0 : [...items.keys()].find(i => isShown(i) && !verdictOf(i)) ?? find(0, 1), false)
